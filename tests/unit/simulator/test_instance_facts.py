"""Facts of instances over strategies: what they are made of, and that simulated instances do what they say."""

import msgspec
import pytest

from common.errors import ConfigError
from common.messages.control import Role
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.weighted import WeightedPolicy
from services.scheduling.profiles.profile import Origin, Profile, ProfileError, Subject
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.cluster.instance_facts import InstanceFacts, device_facts, profile_facts
from services.simulator.cluster.keys import InstanceKeys
from services.simulator.cluster.served_model import ServedModel
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.memory import InfeasibleError, kv_capacity_tokens
from services.simulator.hardware.models import find_model
from services.simulator.hardware.pipelined import PipelinedTimer
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec
from services.simulator.runs.report import Report
from services.simulator.simulate import simulate
from services.simulator.workload.arrivals import all_at_once
from services.simulator.workload.requests import TracedRequest, Workload

CATALOGUE = load_catalogue()
A100, A10, T4 = (CATALOGUE.device(name) for name in ("A100 80GB SXM", "A10", "T4"))
LLAMA3 = ServedModel(find_model("LLaMA3-8B"), "float16", fingerprint="c0ffee")
LLAMA70 = ServedModel(find_model("Llama2-70B"), "float16")
STRATEGIES = [Strategy(), Strategy(2), Strategy(1, 2), Strategy(2, 2), Strategy(1, 4)]


def keys(role: Role, **changes: object) -> InstanceKeys:
    return msgspec.structs.replace(InstanceKeys(id="x", role=role, device="A100"), **changes)


def measured(profile: Profile, **changes: object) -> Profile:
    subject = msgspec.structs.replace(profile.subject, model="c0ffee")
    return msgspec.structs.replace(profile, origin=Origin.MEASURED, subject=subject, **changes)


# ---------------------------------------------------------------- what they are made of


def test_one_device_is_the_roofline_and_its_profile() -> None:
    facts = device_facts(A10, LLAMA3)
    profile = spec_profile(A10, LLAMA3.spec, "float16", 512)
    truth = RooflineTimer(A10, LLAMA3.spec, "float16")
    assert facts.costs == facts.throughput_costs == profile.costs
    assert facts.kv_tokens == kv_capacity_tokens(A10, LLAMA3.spec, "float16") == profile.kv_capacity_tokens
    for timer in facts.timers.values():
        assert timer.step_seconds(((700, 90),), 4, 900) == truth.step_seconds(((700, 90),), 4, 900)
    assert (facts.device, facts.strategy, facts.origin) == ("A10", Strategy(), Origin.SPEC)
    made = facts.instance("p", keys(Role.PREFILL, prefill_chunk=None), Role.PREFILL, None)
    assert (made.pipeline, made.budget, made.costs) == (None, None, facts.costs)


@pytest.mark.parametrize("strategy", STRATEGIES[1:], ids=str)
def test_several_devices_hold_more_and_are_faster(strategy: Strategy) -> None:
    # Of a lean engine, for each stage has its overhead: of 5 ms it costs a small model more than its stages gain.
    lean = A100.assuming(step_overhead_s=0.001)
    alone, facts = device_facts(lean, LLAMA3), device_facts(lean, LLAMA3, strategy)
    assert facts.kv_tokens > strategy.devices * alone.kv_tokens
    assert facts.strategy == strategy
    assert facts.device == f"{strategy.devices} × A100 80GB SXM, {strategy}"
    more = alone.costs.prefill.seconds(2000) / facts.throughput_costs.prefill.seconds(2000)
    assert 0.75 * strategy.devices < more < strategy.devices
    assert facts.costs.prefill.seconds(2000) < 1.25 * alone.costs.prefill.seconds(2000) / strategy.tp
    # A step of 64 decodes reads weights and KV in shares.
    step = facts.throughput_costs.decode.seconds(64, 64 * 1000)
    assert step < 1.2 * alone.costs.decode.seconds(64, 64 * 1000)


def test_a_group_is_one_timer_and_stages_are_a_pipeline() -> None:
    group = device_facts(A100, LLAMA3, Strategy(2)).instance("d", keys(Role.DECODE), Role.DECODE, 2.0)
    assert (group.pipeline, group.budget, group.weight) == (None, 512, 2.0)
    facts = device_facts(A100, LLAMA3, Strategy(2, 4))
    made = facts.instance("d", keys(Role.DECODE, budget=256), Role.DECODE, None)
    assert made.pipeline is not None
    assert (made.pipeline.layers, made.pipeline.micro_batches, made.budget) == ((8, 8, 8, 8), 4, 256)
    timer = facts.timers[Role.DECODE]
    assert isinstance(timer, PipelinedTimer)
    stages = (made.timer, *made.pipeline.later)
    step = (((300, 0),), 5, 4000)
    assert sum(stage.step_seconds(*step) for stage in stages) == pytest.approx(timer.step_seconds(*step), rel=0.01)


def test_the_two_costs_of_stages() -> None:
    facts = device_facts(A100, LLAMA70, Strategy(2, 2), budget=512)
    timer = facts.timers[Role.DECODE]
    assert isinstance(timer, PipelinedTimer)
    # 64 sequences that decode are 32 in each of two steps.
    step = ((), 32, 32 * 900)
    assert facts.costs.decode.seconds(64, 64 * 900) == pytest.approx(timer.step_seconds(*step), rel=0.05)
    assert facts.throughput_costs.decode.seconds(64, 64 * 900) == pytest.approx(
        2 * timer.slowest_seconds(*step), rel=0.05
    )
    # A round of two full steps.
    mixed = facts.throughput_costs.mixed
    chunked = (((480, 500),), 32, 32 * 900)
    seconds = mixed.base + 1024 * mixed.per_token + 1000 * mixed.per_chunk_context + 64 * 900 * mixed.per_decode_context
    assert seconds == pytest.approx(2 * timer.slowest_seconds(*chunked), rel=0.1)


def test_a_link_of_ones_own() -> None:
    slow = device_facts(A100, LLAMA70, Strategy(4), link=LinkSpec(5e9, 20e-6))
    fast = device_facts(A100, LLAMA70, Strategy(4))
    assert slow.costs.prefill.per_token > 2 * fast.costs.prefill.per_token
    assert slow.costs.decode.base > fast.costs.decode.base + 160 * 6 * 19e-6
    assert slow.kv_tokens == fast.kv_tokens


def test_what_does_not_fit_names_strategies_and_devices() -> None:
    with pytest.raises(InfeasibleError, match=r"among 2 of these with TP2, or take .* such as A10$"):
        device_facts(T4, LLAMA3, among=(T4, A10, A100))
    assert device_facts(T4, LLAMA3, Strategy(2)).kv_tokens > 10_000
    with pytest.raises(ConfigError, match="TP64 does not divide the 32 heads"):
        device_facts(A100, LLAMA3, Strategy(64))
    with pytest.raises(InfeasibleError, match="GB more than LLaMA3-8B in float16 leaves of all memory of 2 × T4, TP2"):
        device_facts(T4, LLAMA3, Strategy(2), kv_tokens=10**6)
    # A model that fits to the last megabyte has no room for steps that could be timed.
    tight = (LLAMA3.spec.weight_bytes("float16") + 1.5e9 + 131_072 * 200) / A10.memory_bytes
    with pytest.raises(InfeasibleError, match=r"leaves A10 room for (199|200) tokens of KV"):
        device_facts(A10, LLAMA3, utilisation=tight)


# ---------------------------------------------------------------- profiles


def test_a_measured_group_has_the_lines_of_its_profile() -> None:
    profile = measured(spec_profile(A100, LLAMA3.spec, "float16", 512, strategy=Strategy(2)))
    facts = profile_facts(profile, LLAMA3)
    assert facts.strategy == Strategy(2)
    assert facts.costs == facts.throughput_costs == profile.costs
    assert facts.timers[Role.PREFILL].step_seconds(((900, 0),), 0, 0) == profile.costs.prefill.seconds(900)
    assert facts.instance("d", keys(Role.DECODE), Role.DECODE, None).pipeline is None
    assert facts.device == "A100 80GB SXM, TP2"


def test_a_measured_pipeline_is_divided_evenly() -> None:
    profile = measured(spec_profile(A100, LLAMA3.spec, "float16", 512, strategy=Strategy(1, 2)))
    facts = profile_facts(profile, LLAMA3)
    for role, shape, seconds in (
        (Role.PREFILL, (((900, 0),), 0, 0), profile.costs.prefill.seconds(900)),
        (Role.DECODE, ((), 16, 16 * 900), profile.costs.decode.seconds(32, 32 * 900)),
    ):
        timer = facts.timers[role]
        assert isinstance(timer, PipelinedTimer)
        assert timer.step_seconds(*shape) == pytest.approx(seconds, rel=1e-12)
        assert timer.slowest_seconds(*shape) == pytest.approx(seconds / 2, rel=1e-12)
    assert facts.throughput_costs.prefill.seconds(900) == pytest.approx(profile.costs.prefill.seconds(900) / 2)
    assert facts.throughput_costs.decode.seconds(32, 32 * 900) == pytest.approx(
        profile.costs.decode.seconds(32, 32 * 900)
    )
    # Near what the two devices of the specification would do.
    spec = device_facts(A100, LLAMA3, Strategy(1, 2))
    assert facts.throughput_costs.prefill.seconds(900) == pytest.approx(
        spec.throughput_costs.prefill.seconds(900), rel=0.1
    )


def test_a_profile_of_something_else_or_without_room_is_refused() -> None:
    profile = measured(spec_profile(A10, LLAMA3.spec, "float16", 512))
    with pytest.raises(ProfileError, match="is of model 'c0ffee'"):
        profile_facts(profile, msgspec.structs.replace(LLAMA3, fingerprint="beef"))
    with pytest.raises(ProfileError, match="give kv_tokens or kv_memory"):
        profile_facts(measured(profile, kv_capacity_tokens=None), LLAMA3)
    assert profile_facts(measured(profile, kv_capacity_tokens=None), LLAMA3, kv_tokens=999).kv_tokens == 999
    odd = msgspec.structs.replace(profile, subject=Subject("c0ffee", "float16", pp=3))
    with pytest.raises(ConfigError, match="tp 1 and pp 3: each must be a power of two"):
        profile_facts(odd, LLAMA3)


# ---------------------------------------------------------------- simulated


def alike(count: int, prompt: int, output: int) -> Workload:
    requests = tuple(TracedRequest(0.0, prompt, output) for _ in range(count))
    return all_at_once(Workload(name="alike", source="made up", requests=requests, arrivals=None))


def serve(workload: Workload, *instances: SimulatedInstance, slots: int = 2, is_split: bool = False) -> Report:
    cluster = Cluster(
        instances=instances,
        layers=LLAMA3.spec.layers,
        kv_bytes_per_token=LLAMA3.token_bytes,
        link=LinkSpec(1e12, 1e-6),
    )
    policy = FixedPolicy("full") if is_split else WeightedPolicy()
    return simulate(cluster, workload, policy, prefill_slots=slots, checked=True)


def decoding(facts: InstanceFacts, sequences: int) -> SimulatedInstance:
    return facts.instance("d", keys(Role.DECODE, max_batch=sequences), Role.DECODE, None)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_simulated_decodes_take_what_the_closed_form_says(strategy: Strategy) -> None:
    sequences, output = 64, 400
    facts = device_facts(A100, LLAMA3, strategy, max_batch=sequences)
    report = serve(alike(sequences, 16, output), decoding(facts, sequences))
    step = facts.throughput_costs.decode.seconds(sequences, sequences * (16 + output // 2))
    assert report.makespan_s == pytest.approx(output * step, rel=0.1)
    gap = max(step, facts.costs.decode.seconds(sequences, sequences * (16 + output // 2)))
    assert report.tpot.p50 == pytest.approx(gap, rel=0.1)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_simulated_prompts_take_what_the_closed_form_says(strategy: Strategy) -> None:
    count, prompt = 60, 1500
    facts = device_facts(A100, LLAMA3, strategy)
    p = facts.instance("p", keys(Role.PREFILL), Role.PREFILL, None)
    d = decoding(device_facts(A100, LLAMA3, Strategy(4)), 256)
    # One more slot than stages: one that is handed over keeps its own.
    report = serve(alike(count, prompt, 1), p, d, slots=strategy.pp + 1, is_split=True)
    expected = facts.costs.prefill.seconds(prompt) + (count - 1) * facts.throughput_costs.prefill.seconds(prompt)
    assert report.makespan_s == pytest.approx(expected, rel=0.1)


def test_stages_lose_the_bubble_when_there_is_little_to_do() -> None:
    # One request at a time passes both stages, and nobody uses the other one meanwhile.
    facts = device_facts(A100, LLAMA3, Strategy(1, 2))
    report = serve(alike(1, 16, 200), decoding(facts, 64))
    timer = facts.timers[Role.DECODE]
    assert report.makespan_s == pytest.approx(200 * timer.step_seconds((), 1, 116), rel=0.02)


@pytest.mark.parametrize("strategy", [Strategy(2), Strategy(1, 2)], ids=str)
def test_a_full_mix_does_nearly_as_many_times_as_much(strategy: Strategy) -> None:
    workload = alike(300, 900, 100)
    alone = serve(workload, decoding(device_facts(A100, LLAMA3), 128))
    both = serve(workload, decoding(device_facts(A100, LLAMA3, strategy), 128))
    assert 1.5 * alone.throughput_rps < both.throughput_rps < 2 * alone.throughput_rps


def test_a_strategy_serves_with_another_one() -> None:
    p = device_facts(A10, LLAMA3, Strategy(2, 2)).instance("p", keys(Role.PREFILL), Role.PREFILL, None)
    d = device_facts(A100, LLAMA3, Strategy(1, 2)).instance("d", keys(Role.DECODE), Role.DECODE, None)
    report = serve(alike(40, 700, 50), p, d, slots=4, is_split=True)
    assert [use.requests for use in report.instances] == [40, 40]
    assert report.split_share > 0.99
