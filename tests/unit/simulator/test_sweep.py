"""Procedures of many runs, over the simulator and over stand-ins whose best value is known."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulator.cluster.file import ClusterFile, load_cluster_file
from services.simulator.runs.report import Report
from services.simulator.runs.sweep import (
    SHARES,
    SPLITS,
    arriving_at,
    max_throughput,
    over_rates,
    search,
    tune_split,
    tune_weight,
    tuned,
)
from services.simulator.runs.system import System, serve
from services.simulator.simulate import simulate
from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.requests import Workload
from services.simulator.workload.shapes import SHAPES
from services.simulator.workload.synthetic import synthetic

FILE = """
model: LLaMA3-8B
instances:
  - {id: a10, role: prefill, device: A10}
  - {id: a100, role: decode, device: A100 80GB SXM}
  - {id: l4, role: decode, device: L4, count: 2}
systems:
  - {name: dp, policy: dp, roles: {a10: decode, l4: null}, weights: tuned}
  - {name: three, policy: dp, roles: {a10: decode}, weights: tuned}
  - {name: one, policy: dp, roles: {a10: null, l4: null}, weights: tuned}
  - {name: fixed, policy: fixed, split: tuned, roles: {l4: null}}
  - {name: cronus, policy: cronus, roles: {l4: null}}
"""
WORKLOAD = synthetic(40, 0, SHAPES["azure_conv_first1000"])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> ClusterFile:
    path: Path = tmp_path_factory.mktemp("cluster") / "c.yaml"
    path.write_text(FILE)
    return load_cluster_file(path)


@pytest.fixture(scope="module")
def report(file: ClusterFile) -> Report:
    return serve(system_of(file, "cronus"), WORKLOAD)


def system_of(file: ClusterFile, name: str) -> System:
    (system,) = file.systems([name])
    return system


def pretending(report: Report, throughput_of: Callable[[System], float]) -> Callable[[System, Workload], Report]:
    """Serves in no time, as fast as it is told."""

    def pretend(system: System, workload: Workload) -> Report:
        assert workload.arrivals == "all at once"
        return msgspec.structs.replace(report, throughput_rps=throughput_of(system))

    return pretend


def dealt(rates: dict[str, float]) -> Callable[[System], float]:
    """The throughput of instances that need 1 / rate s a request, by name, when requests are dealt by weight."""

    def throughput_of(system: System) -> float:
        weights = {spec.name: spec.weight for spec in system.cluster.instances}
        total = sum(weights.values())
        return 1 / max(weight / total / rates[name] for name, weight in weights.items())

    return throughput_of


def test_the_most_throughput_is_that_of_everything_at_once(file):
    system = system_of(file, "cronus")
    found = max_throughput(system, WORKLOAD, serve)
    assert found.arrivals == "all at once"
    assert found.requests == 40
    assert found.throughput_rps == pytest.approx(40 / found.makespan_s)
    (slower,) = over_rates(system, WORKLOAD, [0.5], 0, serve)
    assert slower.throughput_rps < 0.6 < found.throughput_rps


def test_latencies_grow_with_the_rate_and_streams_are_alike(file):
    reports = over_rates(system_of(file, "cronus"), WORKLOAD, [0.5, 2, 20], 7, serve)
    assert [report.arrivals for report in reports] == [
        f"Poisson, {rate} requests/s, seed 7" for rate in ("0.5", "2", "20")
    ]
    for slow, fast in pairwise(reports):
        assert slow.ttft.p99 < fast.ttft.p99
        assert slow.tbt.mean < fast.tbt.mean


def test_equal_arguments_give_equal_reports(file):
    system = system_of(file, "cronus")
    assert over_rates(system, WORKLOAD, [3], 1, serve) == over_rates(system, WORKLOAD, [3], 1, serve)
    assert over_rates(system, WORKLOAD, [3], 1, serve) != over_rates(system, WORKLOAD, [3], 2, serve)


def test_arrivals_by_the_variation_of_their_gaps():
    times = [request.arrival_s for request in arriving_at(WORKLOAD, 4, 0, cv=0).requests]
    assert times == [index / 4 for index in range(40)]
    assert arriving_at(WORKLOAD, 4, 0) == arriving_at(WORKLOAD, 4, 0, cv=1.0)
    assert "cv 3" in arriving_at(WORKLOAD, 4, 0, cv=3).arrivals
    assert arriving_at(WORKLOAD, 2, 5).requests[-1].arrival_s == 2 * arriving_at(WORKLOAD, 4, 5).requests[-1].arrival_s


@pytest.mark.parametrize(("rate", "cv"), [(0, 1), (-1, 1), (math.nan, 1), (math.inf, 1), (0, 0), (-2, 0), (1, -1)])
def test_rates_that_are_none(rate, cv):
    with pytest.raises(WorkloadError):
        arriving_at(WORKLOAD, rate, 0, cv)


# ---------------------------------------------------------------- search


@given(best=st.floats(0, 1))
def test_the_top_of_a_hill_is_found_to_one_part_in_a_hundred(best):
    found = search(lambda value: 10 - abs(value - best), SPLITS)
    assert max(found.values()) >= 10 - 0.1 / 2**4
    assert len(found) <= len(SPLITS) + 8


def test_a_second_hill_that_is_higher_is_not_missed():
    found = search(lambda value: 5 - abs(value - 0.15) if value < 0.5 else 6 - abs(value - 0.83), SPLITS)
    assert max(found.values()) == pytest.approx(6, abs=0.01)


def test_on_a_plain_nothing_is_better_than_the_smallest():
    found = search(lambda _: 1.0, SHARES)
    assert max(found, key=lambda value: (found[value], -value)) == SHARES[0]


# ---------------------------------------------------------------- tuning


def test_two_weights_are_found(file, report):
    dp = system_of(file, "dp")
    found = tune_weight(dp, WORKLOAD, pretending(report, dealt({"a10": 1.3, "a100": 7.4})))
    weights = {spec.name: spec.weight for spec in found.system.cluster.instances}
    assert weights["a10"] / sum(weights.values()) == pytest.approx(1.3 / 8.7, abs=0.007)
    assert not found.system.tunes_weights
    assert {trial.parameter for trial in found.trials} == {"share of a10"}
    best = max(trial.throughput_rps for trial in found.trials)
    assert best == pytest.approx(8.7, rel=0.05)


@settings(max_examples=25)
@given(fast=st.floats(1, 8), middle=st.floats(1, 8), slow=st.floats(1, 8))
def test_three_weights_are_found_nearly(file, report, fast, middle, slow):
    rates = {"a10": middle, "a100": fast, "l4-0": slow, "l4-1": slow}
    throughput_of = dealt(rates)
    found = tune_weight(system_of(file, "three"), WORKLOAD, pretending(report, throughput_of))
    assert throughput_of(found.system) == max(trial.throughput_rps for trial in found.trials)
    assert throughput_of(found.system) >= 0.9 * sum(rates.values())
    l4s = {spec.weight for spec in found.system.cluster.instances if spec.name.startswith("l4")}
    assert len(l4s) == 1


def test_one_entry_has_nothing_to_tune(file, report):
    found = tune_weight(system_of(file, "one"), WORKLOAD, pretending(report, lambda _: pytest.fail("was run")))
    assert found.trials == ()
    assert [spec.weight for spec in found.system.cluster.instances] == [1.0]


def test_a_split_is_found(file, report):
    fixed = system_of(file, "fixed")
    found = tune_split(fixed, WORKLOAD, pretending(report, lambda system: 3 - abs(system.split - 0.34)))
    assert found.system.split == pytest.approx(0.34, abs=0.007)
    assert not found.system.tunes_split
    assert [trial.value for trial in found.trials] == sorted(trial.value for trial in found.trials)


def test_tuning_with_the_simulator_gains(file):
    dp = system_of(file, "dp")
    by_costs = max_throughput(msgspec.structs.replace(dp, tunes_weights=False), WORKLOAD, serve)
    found = tuned(dp, WORKLOAD, serve)
    best = max_throughput(found.system, WORKLOAD, serve)
    assert best.throughput_rps == max(trial.throughput_rps for trial in found.trials)
    assert best.throughput_rps >= by_costs.throughput_rps
    cronus = system_of(file, "cronus")
    assert tuned(cronus, WORKLOAD, serve).system is cronus


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize("requests", [1, 7, 100, 101, 350])
def test_progress_is_told_seldom_and_to_the_end(file, requests):
    system, workload = system_of(file, "cronus"), synthetic(requests, 0, SHAPES["decode_heavy"])
    heard: list[float] = []
    found = serve(system, workload, heard.append)
    assert heard == sorted(set(heard))
    assert heard[-1] == 1.0
    assert len(heard) <= min(requests, 100)
    assert found == serve(system, workload)


def test_the_curves_of_a_report_end_at_everything(file):
    system = system_of(file, "cronus")
    found = simulate(system.cluster, WORKLOAD, system.placement_policy())
    for curve, spread in ((found.ttft_curve, found.ttft), (found.tbt_curve, found.tbt)):
        assert curve[-1][1] == 1.0
        assert curve[-1][0] == pytest.approx(spread.max, rel=1e-3)
        assert all(a[0] <= b[0] and a[1] < b[1] for a, b in pairwise(curve))
