"""The comparison of policies: its meshes, bounds, searches and rows."""

from pathlib import Path

import pytest

from common.config.load import check_mesh
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.messages.control import Role
from services.bench.load.run import LoadFigures
from services.bench.policies.ablations import (
    ablation_row,
    balance_over_best_fraction,
    burst_variants,
    fleet_variants,
    fraction_variants,
    pair_variants,
)
from services.bench.policies.pairs import PairSystem, Tuning, make_pair
from services.bench.policies.paper import paper_rows, paper_summary, serve
from services.bench.policies.predicted import Bounds, KVShape, best_dp_weight, bounds_of, predict
from services.bench.policies.real import Served, load_requests
from services.bench.policies.real_rows import OFFLINE, RealFacts, real_rows, real_summary
from services.bench.policies.systems import Devices, System, mesh_of
from services.scheduling.profiles.profile import Origin, Profile, Subject
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.links import LinkSpec
from services.simulator.workload.arrivals import all_at_once, poisson
from services.simulator.workload.requests import scaled
from services.simulator.workload.synthetic import synthetic

LENGTHS = synthetic(40, seed=3)
COSTS = InstanceCosts(
    PrefillCost(0.005, 0.001), MixedStepCost(0.01, 0.001, 1e-6, 1e-6), DecodeStepCost(0.01, 0.001, 1e-6)
)


def a_profile(factor: float) -> Profile:
    return Profile(
        subject=Subject("m", "bfloat16"),
        origin=Origin.MEASURED,
        device="cpu",
        costs=COSTS.scaled(factor),
        fits={},
        slowdown=factor,
        kv_capacity_tokens=50_000,
    )


PROFILES = {"fast": a_profile(1.0), "slow": a_profile(3.0)}


@pytest.mark.parametrize("system", System)
def test_every_system_is_a_mesh_that_can_be_configured(system: System) -> None:
    config = check_mesh(mesh_of(system, Devices(model="smollm2"), {"fast": Path("f.json"), "slow": Path("s.json")}))
    by_id = {instance.id: instance for instance in config.instances}
    assert by_id["high"].emulate.slowdown == 1.0
    assert by_id["low"].emulate.slowdown == 3.0
    assert by_id["high"].cpu_affinity != by_id["low"].cpu_affinity
    roles = (by_id["high"].role, by_id["low"].role)
    assert (
        roles
        == {
            System.CRONUS: (Role.DECODE, Role.PREFILL),
            System.LOW_HIGH: (Role.DECODE, Role.PREFILL),
            System.HIGH_LOW: (Role.PREFILL, Role.DECODE),
            System.DP: (Role.DECODE, Role.DECODE),
        }[system]
    )


def test_the_bounds_are_those_of_the_slower_stage_or_of_all_work() -> None:
    bounds = Bounds(prefill_s=0.2, decode_s=0.3, slowdown=3.0)
    assert bounds.of(System.LOW_HIGH) == pytest.approx(1 / 0.6)
    assert bounds.of(System.HIGH_LOW) == pytest.approx(1 / 0.9)
    assert bounds.of(System.CRONUS) == bounds.of(System.DP) == pytest.approx(4 / (3 * 0.5))


def test_p_and_d_are_those_of_a_mean_request() -> None:
    workload = scaled(LENGTHS, 8)
    bounds = bounds_of(PROFILES["fast"], Devices(model="m"), workload)
    prompts = [request.prompt_tokens for request in workload.requests]
    assert bounds.prefill_s == pytest.approx(0.005 + 0.001 * round(sum(prompts) / len(prompts)))
    assert 0.001 * 16 < bounds.decode_s * 16 / 31 * 2 < 1.0


def test_the_weight_with_the_most_throughput_is_found() -> None:
    assert best_dp_weight(lambda share: -abs(share - 0.83)) == pytest.approx(0.83)


def test_a_run_on_a_machine_stands_beside_its_prediction() -> None:
    devices, workload = Devices(model="m"), all_at_once(scaled(LENGTHS, 8))
    loads = {OFFLINE: workload, "rate": poisson(scaled(LENGTHS, 8), 1.0, 1)}
    figures = LoadFigures(40, 2.0, 60.0, 1.0, 1.0, 2.0, 0.03, 0.03, 0.1)
    served = [Served(system, load, (figures, figures), ("a", "b")) for system in System for load in loads]
    predicted = {
        (item.system, item.load): predict(
            item.system, devices, PROFILES, KVShape(2, 4096), LinkSpec(1e9), loads[item.load], dp_weight=0.75
        )
        for item in served
    }
    facts = RealFacts(devices, loads, {OFFLINE: None, "rate": 1.0}, 0.75, Bounds(0.2, 0.3, 3.0))
    rows = real_rows(served, predicted, facts)
    assert len(rows) == 8
    assert all(row["where"] == "emulated" and row["repeats"] == 2 for row in rows)
    assert all(row["same_answers_as_cronus"] == 1.0 for row in rows)
    summary = real_summary(rows)
    assert summary["throughput_cronus_over_best_rival"] == 1.0
    assert summary["prediction_error_throughput_rps"] > 0.0


def test_prompts_have_the_lengths_asked_for_and_differ() -> None:
    requests = load_requests(LENGTHS, 49152)
    assert [len(request.prompt) for request in requests] == [item.prompt_tokens for item in LENGTHS.requests]
    assert len({request.prompt[:8] for request in requests if len(request.prompt) >= 8}) > 30
    assert requests == load_requests(LENGTHS, 49152)


def test_the_papers_table_has_every_system_tuned_alike() -> None:
    pair = make_pair(load_catalogue(), "A100 80GB SXM", "A10", "LLaMA3-8B", 0.75)
    steps: list[str] = []
    rows = paper_rows(pair, LENGTHS, steps.append)
    offline = {row["system"]: row for row in rows if row["load"] == "all_at_once"}
    assert set(offline) == set(PairSystem)
    assert offline["dp_tuned"]["throughput_rps"] >= offline["dp_untuned"]["throughput_rps"]
    assert all(row["where"] == "simulated" for row in rows)
    summary = paper_summary(rows)
    assert summary["a10_llama3_throughput_over_high_low"] > 1.0
    assert summary["a10_llama3_ttft_p99_change_to_low_high"] < 0.0
    assert steps


def test_every_ablation_runs_and_the_balance_is_held_against_the_best_fraction() -> None:
    catalogue = load_catalogue()
    pair = make_pair(catalogue, "A100 80GB SXM", "A10", "LLaMA3-8B", 0.75)
    variants = [*pair_variants(pair, LENGTHS, ()), *burst_variants(pair, LENGTHS, 5.0)]
    variants += fleet_variants(catalogue, pair, LENGTHS)
    rows = [ablation_row(pair, variant, variant.run()) for variant in variants]
    assert {row["ablation"] for row in rows} >= {"balance", "fraction", "link", "bursts", "four devices", "chunk of P"}
    assert balance_over_best_fraction(rows)["a10_llama3_balance_over_best_fraction"] > 0.8


def test_fractions_are_of_the_whole_prompt() -> None:
    pair = make_pair(load_catalogue(), "A100 80GB SXM", "A10", "LLaMA3-8B", 0.75)
    cluster = pair.of(PairSystem.CRONUS, Tuning(), LENGTHS)
    shares = {item.setting: item.run().split_share for item in fraction_variants(cluster, all_at_once(LENGTHS))}
    assert shares["0.0"] == 0.0
    assert shares["0.5"] == pytest.approx(0.5, abs=0.02)
    assert serve(pair, PairSystem.LOW_HIGH, all_at_once(LENGTHS)).split_share > 0.95
