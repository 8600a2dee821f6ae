"""The simulated half of the scheduler's benchmark: its clusters, loads, predictors and rows."""

import msgspec
import numpy as np
import pytest

from services.bench.scheduling.clusters import RATIOS, four_types, two_machines
from services.bench.scheduling.loads import CLASSES, SchedulerLoad, heavy_tailed, scheduler_loads
from services.bench.scheduling.predictors import ORACLES, PREDICTORS, predictor
from services.bench.scheduling.simulated import POLICIES, Dispatch, scheduler_rows, scheduler_summary
from services.scheduling.policies.registry import load_policy
from services.simulator.clients import Clients
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.simulate import simulate
from services.simulator.workload.requests import Workload

CATALOGUE = load_catalogue()
LOADS = {load.name: load for load in scheduler_loads()}


def quiet(_step: str) -> None:
    pass


@pytest.mark.parametrize("ratio", RATIOS)
def test_two_machines_have_rates_of_just_that_ratio(ratio: float) -> None:
    workload = LOADS["compute"].make(60, 1)
    fast, slow = (
        simulate(alone, workload, load_policy("dp", "full")).tokens_per_s
        for alone in two_machines(CATALOGUE, ratio).alone()
    )
    assert fast / slow == pytest.approx(ratio)


def test_the_other_cluster_has_four_types_the_fastest_first() -> None:
    cluster = four_types(CATALOGUE)
    assert len(cluster.instances) == 8
    workload = LOADS["compute"].make(40, 1)
    rates = [simulate(alone, workload, load_policy("dp", "full")).tokens_per_s for alone in cluster.alone()]
    assert len({round(rate) for rate in rates}) == 4
    assert rates == sorted(rates, reverse=True)


def test_a_load_leaves_an_instance_at_most_its_own_memory() -> None:
    for cluster in (two_machines(CATALOGUE, 2.0), four_types(CATALOGUE)):
        rooms = [instance.kv_tokens for instance in LOADS["memory"].on(cluster).instances]
        fastest = len(rooms) // 4 or 1
        assert set(rooms[:fastest]) == {8192}
        for instance, room in zip(cluster.instances[fastest:], rooms[fastest:], strict=True):
            assert room == min(32768, instance.kv_tokens)
        assert LOADS["compute"].on(cluster) is cluster


@pytest.mark.parametrize("load", LOADS.values(), ids=list(LOADS))
def test_a_load_is_the_same_for_the_same_seed_and_within_its_cap(load: SchedulerLoad) -> None:
    workload = load.make(50, 1)
    assert workload == load.make(50, 1)
    assert len(workload.requests) == 50
    assert all(request.arrival_s == 0.0 for request in workload.requests)
    Clients(workload, load.max_tokens)  # which refuses answers beyond the cap
    if not load.is_compute_bound:
        assert workload != load.make(50, 2)


def test_the_heavy_tail_is_one_and_its_classes_tell_lengths_apart() -> None:
    requests = heavy_tailed(4000, 5).requests
    outputs = np.array([request.output_tokens for request in requests])
    assert outputs.std() / outputs.mean() > 1.4
    for name, (share, median) in CLASSES.items():
        mine = [request.output_tokens for request in requests if request.user == name]
        assert len(mine) / len(requests) == pytest.approx(share, abs=0.03)
        assert np.median(mine) == pytest.approx(median, rel=0.1)


def predictions(name: str, workload: Workload) -> list[float | None]:
    load = LOADS["heavy_tail"]
    clients, lengths = Clients(workload, load.max_tokens), predictor(name, load, workload)
    return [lengths.predict(clients.spec(key)) for key in range(len(workload.requests))]


def test_oracles_err_as_they_are_told_to() -> None:
    workload = heavy_tailed(300, 5)
    truth = np.array([request.output_tokens for request in workload.requests], dtype=float)
    assert predictions("oracle", workload) == truth.tolist()
    assert predictions("oracle x 2", workload) == np.minimum(512.0, 2 * truth).tolist()
    assert predictions("oracle x 0.5", workload) == np.maximum(1.0, truth / 2).tolist()
    told = np.array(predictions("oracle x lognormal", workload))
    assert 0.8 < np.median(told / truth) < 1.25
    assert np.std(np.log(told / truth)) > 0.6


def test_predictors_have_seen_answers_before_the_first_request() -> None:
    workload = heavy_tailed(200, 5)
    for name in set(PREDICTORS) - set(ORACLES) - {"max_tokens"}:
        assert None not in predictions(name, workload)
    by_class = dict(zip((request.user for request in workload.requests), predictions("class", workload), strict=True))
    assert by_class["short"] < by_class["medium"] < by_class["long"]
    assert len(set(predictions("mean", workload))) == 1


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    clusters = (two_machines(CATALOGUE, 3.45),)
    # Of which `quick` takes a tenth.
    loads = (LOADS["compute"], msgspec.structs.replace(LOADS["heavy_tail"], per_instance=(700, 700)))
    return [dict(row) for row in scheduler_rows(clusters, loads, quiet, quick=True)]


def test_every_policy_stands_beside_round_robin_and_the_ceiling(rows: list[dict[str, object]]) -> None:
    for dispatch in Dispatch:
        mine = {
            row["policy"]: row
            for row in rows
            if (row["kind"], row["load"], row["dispatch"]) == ("scheduler", "compute", dispatch)
        }
        assert set(mine) == set(POLICIES)
        assert mine["round_robin"]["over_round_robin"] == 1.0
        for row in mine.values():
            assert row["where"] == "simulated"
            assert row["ceiling"] == pytest.approx(2.225)
            assert 0.9 < row["over_round_robin"] < row["ceiling"] * 1.02
            assert 0.0 <= row["finish_spread"] <= 1.0
        assert mine["dp"]["over_round_robin"] > 1.7
    assert all(row["ceiling"] is None for row in rows if row["load"] == "heavy_tail")


def test_parts_and_predictors_are_varied_where_they_matter(rows: list[dict[str, object]]) -> None:
    settings = {(row["kind"], row["load"], row["setting"]) for row in rows if row["kind"] != "scheduler"}
    parts = {"compute and KV", "compute only", "KV only"}
    assert {part for kind, load, part in settings if (kind, load) == ("ablation", "compute")} == parts
    assert {name for kind, _, name in settings if kind == "predictor"} == set(PREDICTORS)
    assert not any(load == "compute" for kind, load, _ in settings if kind == "predictor")
    summary = scheduler_summary(rows)
    assert 0.5 < summary["dp_gain_over_ceiling_3.45_compute_bound"] < 1.02
    assert summary["capacity_over_dp_3.45_heavy_tail_late"] > 0.5
    assert summary["both_over_kv_only_3.45_compute_bound"] > 0.5
    assert summary["max_tokens_over_truth_3.45_heavy_tail_bound"] > 0.2
