"""The policy `capacity` beside its rivals, on instances whose rates are known exactly."""

import msgspec
import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from services.scheduling.policies.capacity import CapacityPolicy, CapacitySettings
from services.scheduling.policies.registry import load_policy
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.runs.report import Report
from services.simulator.runs.system import System, serve
from services.simulator.simulate import simulate
from services.simulator.workload.requests import TracedRequest, Workload
from tests.unit.simulator.simulation_case import LinearTimer, cluster, decode, prefill

COSTS = InstanceCosts(
    prefill=PrefillCost(base=0.010, per_token=1e-3),
    mixed=MixedStepCost(base=0.010, per_token=1e-3, per_chunk_context=0.0, per_decode_context=1e-6),
    decode=DecodeStepCost(base=0.010, per_sequence=1e-3, per_context=1e-6),
)
"""Of the timer below: the policy knows the truth."""
MEMORY = 4096


def instance(name: str, factor: float, kv_tokens: int = MEMORY) -> SimulatedInstance:
    """So many times slower than `COSTS`; p… prefills, d… decodes."""
    timer = LinearTimer(base=0.010 * factor, per_token=1e-3 * factor, per_context=1e-6 * factor)
    make = prefill if name.startswith("p") else decode
    facts = {} if name.startswith("p") else {"max_batch": 8, "budget": 64}
    return make(name, timer, costs=COSTS.scaled(factor), kv_tokens=kv_tokens, block_size=16, **facts)


def instances(*factors: float) -> Cluster:
    return cluster(*[instance(f"d{number}", factor) for number, factor in enumerate(factors)])


def alike(requests: int, prompt: int = 64, output: int = 24) -> Workload:
    return Workload("alike", "a test", (TracedRequest(0.0, prompt, output),) * requests)


def uneven(requests: int) -> Workload:
    """Answers of 2 to 120 tokens, a few of them long."""
    lengths = [2 + 118 * (number * 37 % 100) ** 3 // 99**3 for number in range(requests)]
    return Workload("uneven", "a test", tuple(TracedRequest(0.0, 40, length) for length in lengths))


def run(policy: str, of: Cluster, work: Workload, **how: object) -> Report:
    return simulate(of, work, load_policy(policy, "full"), **how)  # type: ignore[arg-type]


def finish_spread(report: Report) -> float:
    finishes = [use.last_finish_s for use in report.instances]
    return (max(finishes) - min(finishes)) / report.makespan_s


# ---------------------------------------------------------------- how near the ceiling it comes


@pytest.mark.parametrize(("factor", "ceiling"), [(3.45, 1.225), (1.67, 0.335)])
def test_two_instances_work_until_the_same_moment(factor: float, ceiling: float) -> None:
    """In turn, both get half of the requests: mean(c) / min(c) - 1 is all that can be gained on that."""
    of, work = instances(1.0, factor), alike(500)
    in_turn, capacity = run("round_robin", of, work), run("capacity", of, work)
    gain = capacity.throughput_rps / in_turn.throughput_rps - 1
    assert (1 + 1 / factor) / 2 * factor - 1 == pytest.approx(ceiling, rel=0.01)
    assert 0.95 * ceiling <= gain <= 1.02 * ceiling
    assert finish_spread(capacity) < 0.03
    for rival in ("random", "jsq", "power_of_two", "least_kv"):
        assert capacity.throughput_rps > run(rival, of, work).throughput_rps
    # To deal requests of one size by known rates is the best that can be done.
    assert capacity.throughput_rps > 0.98 * run("dp", of, work).throughput_rps


def test_four_types() -> None:
    of, work = instances(1.0, 1.3, 1.9, 2.6), alike(800)
    in_turn, capacity = run("round_robin", of, work), run("capacity", of, work)
    rates = [1 / factor for factor in (1.0, 1.3, 1.9, 2.6)]
    ceiling = sum(rates) / 4 / min(rates) - 1
    assert 0.93 * ceiling <= capacity.throughput_rps / in_turn.throughput_rps - 1 <= 1.02 * ceiling
    assert finish_spread(capacity) < 0.05


@pytest.mark.parametrize("predictor", ["oracle", "class", "quantile", "mean"])
def test_lengths_need_not_be_known(predictor: str) -> None:
    of, work = instances(1.0, 3.45), uneven(500)
    report = run("capacity", of, work, max_tokens=200, output_lengths=predictor)
    assert report.throughput_rps > 1.9 * run("round_robin", of, work).throughput_rps
    assert report.throughput_rps > 1.05 * run("jsq", of, work).throughput_rps


# ---------------------------------------------------------------- memory


def test_waiting_for_memory_spares_preemptions() -> None:
    of = cluster(instance("d0", 1.0, 800), instance("d1", 1.67, 300))
    work = alike(300, prompt=20, output=100)
    report = simulate(of, work, CapacityPolicy(), output_lengths="oracle", checked=True)
    heedless = simulate(of, work, CapacityPolicy(CapacitySettings(counts_kv=False)), output_lengths="oracle")
    preempted, without = [sum(use.preemptions for use in each.instances) for each in (report, heedless)]
    assert preempted < 0.5 * without
    assert report.tbt.max < heedless.tbt.max
    assert report.throughput_rps > 0.9 * heedless.throughput_rps, "to compute a short prompt again costs little"


# ---------------------------------------------------------------- with prefill instances


def test_with_a_p_it_does_what_cronus_does_and_without_one_too() -> None:
    work = alike(200, prompt=200)
    pair = cluster(instance("p0", 1.5), instance("d0", 1.0))
    capacity, cronus = run("capacity", pair, work, checked=True), run("cronus", pair, work)
    assert capacity.throughput_rps > cronus.throughput_rps
    assert capacity.throughput_rps > 1.2 * run("capacity", instances(1.0), work).throughput_rps
    assert 0.2 < capacity.split_share < 0.9


def test_one_busy_p_does_not_hold_up_many_d() -> None:
    """Every request may wait for a slot of it; none has to."""
    of = cluster(instance("p0", 20.0), *[instance(f"d{number}", 1.0) for number in range(4)])
    work = alike(400, prompt=200)
    capacity = run("capacity", of, work)
    assert capacity.throughput_rps > 0.97 * run("capacity", instances(1.0, 1.0, 1.0, 1.0), work).throughput_rps


# ---------------------------------------------------------------- as a system


def test_a_system_has_the_settings_of_its_policy() -> None:
    system = System(
        name="s",
        policy="capacity",
        cluster=instances(1.0, 3.0),
        entries={},
        output_lengths="oracle",
        max_tokens=50,
        capacity=CapacitySettings(counts_work=False),
    )
    blind = serve(system, alike(60))
    seeing = serve(msgspec.structs.replace(system, capacity=CapacitySettings()), alike(60))
    assert isinstance(system.placement_policy(), CapacityPolicy)
    assert blind.instances[0].requests < seeing.instances[0].requests
