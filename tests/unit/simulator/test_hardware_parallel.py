"""Step times of tensor-parallel groups and of stages in a row: by hand, against measurements, and in their limits."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.interconnect import all_reduce_s_per_byte, all_reduce_start_s, machine_link
from services.simulator.hardware.models import find_model
from services.simulator.hardware.pipelined import PipelinedTimer
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.hardware.stages import stage_models, step_timer
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec
from services.simulator.pipeline.line import PipelineLine, StepWork

CATALOGUE = load_catalogue()
A100, A100_PCIE, A10 = (CATALOGUE.device(name) for name in ("A100 80GB SXM", "A100 80GB PCIe", "A10"))
LLAMA3, LLAMA70 = find_model("LLaMA3-8B"), find_model("Llama2-70B")
PROMPT = (((1024, 0),), 0, 0)


def group(device: DeviceSpec, tp: int, link: LinkSpec | None = None) -> RooflineTimer:
    return RooflineTimer(device, LLAMA70, "float16", tp=tp, link=link)


def line(pp: int, *, tp: int = 1, device: DeviceSpec = A100, link: LinkSpec | None = None) -> PipelinedTimer:
    made = step_timer(device, LLAMA3, "float16", Strategy(tp, pp), link)
    assert isinstance(made, PipelinedTimer)
    return made


# ---------------------------------------------------------------- one device


@pytest.mark.parametrize(
    ("device", "model", "prompt", "mixed", "base", "per_context"),
    [
        ("A100 80GB SXM", "LLaMA3-8B", 0.07454742642496286, 0.04116026726336132, 0.01484583282000981, 8.0353114271e-08),
        ("A10", "Qwen2-7B", 0.23128705648640002, 0.1211356250680889, 0.036731735466666665, 1.19466666666666e-07),
        ("A30", "LLaMA3-8B", 0.15865414994747476, 0.08487199736296008, 0.026517313097534835, 1.7560557341907e-07),
    ],
)
def test_one_device_takes_what_it_took_before_there_were_strategies(
    device: str, model: str, prompt: float, mixed: float, base: float, per_context: float
) -> None:
    timer = step_timer(CATALOGUE.device(device), find_model(model), "float16")
    assert timer.step_seconds(((1014, 0),), 0, 0) == pytest.approx(prompt, rel=1e-12)
    assert timer.step_seconds(((400, 600), (100, 0)), 12, 9000) == pytest.approx(mixed, rel=1e-12)
    assert timer.decode_line(16).base == pytest.approx(base, rel=1e-12)
    assert timer.decode_line(16).per_context == pytest.approx(per_context, rel=1e-10)


# ---------------------------------------------------------------- tensor parallelism


def test_four_devices_by_hand() -> None:
    link = LinkSpec(200e9, 1e-6)
    flops, bytes_per_s, tokens = A100.flops, A100.bytes_per_s, 1024 + 8
    products = 2 * (LLAMA70.linear_params / 4) * tokens / flops
    attention = 4 * 8192 / 4 * 80 * (1024 * 512 + 1024**2 / 2) / (0.6 * flops)
    reading = (8 * 700 + 512) * (327_680 / 4) / bytes_per_s
    # Two all-reduces in each of 80 layers: a ring sends 2 · 3/4 of the bytes, in 6 messages.
    all_reduces = 160 * (8e-6 + 6 * 1e-6 + 1.5 * tokens * 8192 * 2 / 200e9)
    expected = products + attention + reading + all_reduces + 0.005
    assert group(A100, 4, link).step_seconds(((1024, 512),), 8, 8 * 700) == pytest.approx(expected, rel=1e-12)


def test_more_ranks_than_kv_heads_read_no_less_kv() -> None:
    lines = [RooflineTimer(A100, LLAMA3, "float16", tp=tp).decode_line(4) for tp in (4, 8, 16)]
    assert lines[1].per_context == pytest.approx(lines[0].per_context / 2)
    assert lines[2].per_context == lines[1].per_context


def test_the_link_is_the_interconnect_where_it_joins_so_many() -> None:
    assert machine_link(A100, 8).bytes_per_s == pytest.approx(0.7 * 300e9)
    assert machine_link(A100_PCIE, 2).bytes_per_s == pytest.approx(0.7 * 300e9)
    # A bridge joins pairs; four meet in the host.
    assert machine_link(A100_PCIE, 4) == machine_link(A10, 4)
    assert machine_link(A10, 2).bytes_per_s == pytest.approx(0.7 * 32e9)
    assert machine_link(A10, 2).latency_s > machine_link(A100, 2).latency_s


def test_all_reduces_near_measured_ones() -> None:
    # Vidur's profile of four H100: 64 MiB in 0.318 ms; of eight: 1 MiB in 0.033 ms.
    h100 = machine_link(CATALOGUE.device("H100 SXM"), 8)
    assert all_reduce_s_per_byte(4, h100) * 2**26 + all_reduce_start_s(4, h100) == pytest.approx(0.318e-3, rel=0.1)
    assert all_reduce_s_per_byte(8, h100) * 2**20 + all_reduce_start_s(8, h100) == pytest.approx(0.033e-3, rel=0.4)
    # nccl issue 1530: eight RTX 4090 take 42 us for 8 bytes.
    assert all_reduce_start_s(8, machine_link(CATALOGUE.device("4090"), 8)) == pytest.approx(42e-6, rel=0.1)
    assert all_reduce_start_s(1, h100) == all_reduce_s_per_byte(1, h100) == 0.0


@pytest.mark.parametrize(
    ("device", "model", "tp", "sequences_context", "measured_ms"),
    [
        # llama-7b at one user, TGI (LLM-Pilot), median gaps: over PCIe, where no engine's launches hide the link.
        ("A10", "Llama2-7B", 2, (1, 130), 19.0),
        ("T4", "Llama2-7B", 2, (1, 130), 32.0),
        ("T4", "Llama2-7B", 4, (1, 130), 18.0),
    ],
)
def test_decode_steps_of_groups_without_an_interconnect_are_near_measured_ones(
    device: str, model: str, tp: int, sequences_context: tuple[int, int], measured_ms: float
) -> None:
    timer = RooflineTimer(CATALOGUE.device(device), find_model(model), "float16", tp=tp)
    assert 1e3 * timer.step_seconds((), *sequences_context) == pytest.approx(measured_ms, rel=0.2)


@pytest.mark.parametrize(
    ("tp", "ms"), [(2, (195, 377, 688, 1485)), (4, (127, 227, 403, 965)), (8, (93, 154, 274, 661))]
)
def test_prompts_are_near_the_published_ones_of_a_70b(tp: int, ms: tuple[float, ...]) -> None:
    # Llama2-70B on A100 80GB, Splitwise: 512 to 4096 tokens. The larger the group, the more its engine adds.
    for tokens, measured in zip((512, 1024, 2048, 4096), ms, strict=True):
        ours = 1e3 * group(A100, tp).step_seconds(((tokens, 0),), 0, 0)
        assert 0.64 * measured < ours < 1.08 * measured


def prompt_efficiency(device: DeviceSpec, tp: int) -> float:
    """What tp devices do of tp times the work of one, without the engine's overhead."""
    lean = device.assuming(step_overhead_s=0.0)
    return group(lean, 1).step_seconds(*PROMPT) / (tp * group(lean, tp).step_seconds(*PROMPT))


@pytest.mark.parametrize("device", [A100, CATALOGUE.device("H100 SXM"), CATALOGUE.device("MI300X")])
def test_more_ranks_take_less_time_and_more_device_time(device: DeviceSpec) -> None:
    seconds = [group(device, tp).step_seconds(*PROMPT) for tp in (1, 2, 4, 8)]
    assert seconds == sorted(seconds, reverse=True)
    efficiencies = [prompt_efficiency(device, tp) for tp in (1, 2, 4, 8)]
    assert efficiencies[0] == 1.0
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert efficiencies[-1] < 0.95


@pytest.mark.parametrize("tp", [4, 8])
def test_groups_over_pcie_lose_more(tp: int) -> None:
    # The same chip: only the link differs, for a bridge joins two.
    assert prompt_efficiency(A100_PCIE, tp) < 0.75 * prompt_efficiency(A100, tp)


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 4096),
    st.integers(0, 4096),
    st.integers(0, 64),
    st.floats(1.01, 4.0),
)
def test_faster_hardware_is_never_slower(
    tp: int, pp: int, chunk: int, before: int, decodes: int, factor: float
) -> None:
    step = (((chunk, before),), decodes, 900 * decodes)
    slow = A100.assuming(compute_efficiency=0.2, memory_efficiency=0.2)
    link = LinkSpec(50e9, 2e-6)
    variants = [
        (A100.assuming(compute_efficiency=0.2 * factor, memory_efficiency=0.2), link),
        (A100.assuming(compute_efficiency=0.2, memory_efficiency=0.2 * factor), link),
        (slow, LinkSpec(50e9 * factor, 2e-6)),
        (slow, LinkSpec(50e9, 2e-6 / factor)),
    ]
    strategy = Strategy(tp, pp)
    basis = step_timer(slow, LLAMA3, "float16", strategy, link).step_seconds(*step)
    for device, other in variants:
        assert step_timer(device, LLAMA3, "float16", strategy, other).step_seconds(*step) <= basis * (1 + 1e-12)


@given(st.sampled_from([Strategy(2), Strategy(8), Strategy(1, 2), Strategy(2, 4)]), st.integers(1, 300), st.integers(0))
def test_the_line_of_decodes_is_the_step(strategy: Strategy, decodes: int, context: int) -> None:
    timer = step_timer(A100, LLAMA3, "float16", strategy)
    found = timer.decode_line(decodes)
    seconds = timer.step_seconds((), decodes, context)
    assert found.base + found.per_context * context == pytest.approx(seconds, rel=1e-9)
    assert timer.step_seconds((), 0, 0) == 0.0


# ---------------------------------------------------------------- stages


def test_a_step_through_two_stages_by_hand() -> None:
    link = LinkSpec(20e9, 3e-6)
    made = line(2, link=link)
    stages = [
        RooflineTimer(A100, stage, "float16").step_seconds(((500, 100),), 4, 4000) for stage in stage_models(LLAMA3, 2)
    ]
    # Activations to the second stage, four sampled tokens back, each after 8 us to begin and one message.
    handed_over = (504 * 4096 * 2 + 4 * 8) / 20e9 + 2 * (8e-6 + 3e-6)
    assert made.step_seconds(((500, 100),), 4, 4000) == pytest.approx(sum(stages) + handed_over, rel=1e-12)
    assert made.slowest_seconds(((500, 100),), 4, 4000) == max(stages)


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_it_is_what_the_line_of_a_simulation_makes_of_a_step_alone(pp: int) -> None:
    made = line(pp, tp=2)
    simulated = PipelineLine(made.stages, made.link, made.bytes_per_token)
    work = StepWork(chunks=((300, 50),), decodes=7, decode_context=6000, sampled=7)
    assert simulated.enter(work, 0.0) == pytest.approx(made.step_seconds(work.chunks, 7, 6000), rel=1e-12)
    # And the next one, begun at once, ends one slowest stage later.
    second = simulated.enter(work, simulated.free_at)
    assert second == pytest.approx(
        made.step_seconds(work.chunks, 7, 6000) + made.slowest_seconds(work.chunks, 7, 6000), rel=0.02
    )


def test_a_slow_link_is_the_slowest_stage() -> None:
    made = line(2, link=LinkSpec(1e6, 0.0))
    assert made.slowest_seconds(*PROMPT) == 1024 * 4096 * 2 / 1e6


def test_balanced_stages_do_nearly_as_many_times_as_much() -> None:
    lean = A100.assuming(step_overhead_s=0.0)
    alone = step_timer(lean, LLAMA70, "float16").step_seconds(*PROMPT)
    for pp in (2, 4, 8):
        made = step_timer(lean, LLAMA70, "float16", Strategy(1, pp))
        assert isinstance(made, PipelinedTimer)
        assert 0.95 * pp < alone / made.slowest_seconds(*PROMPT) <= pp
        assert alone < made.step_seconds(*PROMPT) < 1.02 * alone


# ---------------------------------------------------------------- profiles


def test_a_profile_of_a_group_says_so_and_fits_its_timer() -> None:
    made = spec_profile(A100, LLAMA70, "float16", 512, strategy=Strategy(4))
    assert (made.subject.tp, made.subject.pp) == (4, 1)
    prompt = group(A100, 4).step_seconds(*PROMPT)
    assert made.costs.prefill.seconds(1024) == pytest.approx(prompt, rel=0.15)


def test_a_profile_of_stages_counts_the_decodes_of_all_micro_batches() -> None:
    made = spec_profile(A100, LLAMA3, "float16", 512, strategy=Strategy(1, 2))
    timer = line(2)
    assert made.costs.prefill.seconds(1024) == pytest.approx(timer.step_seconds(*PROMPT), rel=0.15)
    # 32 sequences that decode are two steps of 16, each on its way at the same time.
    assert made.costs.decode.seconds(32, 32 * 900) == pytest.approx(timer.step_seconds((), 16, 16 * 900), rel=0.05)


def test_what_does_not_suit_has_no_timer() -> None:
    with pytest.raises(ConfigError, match="TP2 does not divide the 9 heads"):
        step_timer(A100, find_model("SmolLM2-135M"), "float16", Strategy(2))
    bridged = msgspec.structs.replace(A10, interconnect_devices=1)
    with pytest.raises(ConfigError, match="interconnect_devices of A10 is 1"):
        bridged.assuming()
