"""Layers split between two devices: against brute force, by hand, and bounded by memory."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.costs.shape import StepShape
from common.errors import ConfigError
from common.messages.control import Role
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.device import DeviceSpec, Figure
from services.simulator.hardware.memory import InfeasibleError, kv_capacity_tokens
from services.simulator.hardware.models import ModelSpec, find_model
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.stages import stage_model
from services.simulator.links import LinkSpec
from services.simulator.pipeline.split import (
    DevicePair,
    filled_step,
    pipelined_instance,
    split_layers,
    stage_timers,
)

CATALOGUE = load_catalogue()
A100, A10, A30 = (CATALOGUE.device(name) for name in ("A100 80GB SXM", "A10", "A30"))
LLAMA = find_model("LLaMA3-8B")
QWEN = find_model("Qwen2-7B")
STEP = filled_step(512, 1014, 247)


def stage_seconds(
    device: DeviceSpec, model: ModelSpec, layers: int, step: StepShape, *, overhead: float = 1.0
) -> float:
    """The roofline of docs/devices.md for a share of the layers, written out again."""
    share = layers / model.layers
    kv_width = 2 * model.kv_heads * model.head_dim
    bias = model.layers * (model.attention_width + kv_width) if model.qkv_bias else 0
    norms = 2 * model.layers * model.hidden
    weights = 2 * (share * (model.linear_params + bias + norms) + model.vocab * model.hidden + model.hidden)
    pairs = step.chunk_tokens * step.chunk_context + step.chunk_tokens**2 / 2
    return (
        max(2 * share * model.linear_params * step.tokens / device.flops, weights / device.bytes_per_s)
        + 4 * model.attention_width * layers * pairs / (0.6 * device.flops)
        + (step.chunk_context + step.decode_context) * 2 * layers * kv_width / device.bytes_per_s
        + overhead * device.step_overhead_s
    )


@pytest.mark.parametrize("model", [LLAMA, QWEN], ids=lambda model: model.name)
@pytest.mark.parametrize("pair", [DevicePair(A100, A10), DevicePair(A30, A100)], ids=lambda pair: pair.second.name)
@pytest.mark.parametrize("budget", [64, 512, 2048])
def test_no_split_has_a_faster_slower_stage(pair: DevicePair, model: ModelSpec, budget: int) -> None:
    step = filled_step(budget, 1014, 247)
    split = split_layers(pair, model, "bfloat16", step)
    slower = {
        first: max(
            stage_seconds(pair.first, model, first, step),
            stage_seconds(pair.second, model, model.layers - first, step),
        )
        for first in range(1, model.layers)
    }
    assert sum(split.layers) == model.layers
    assert max(split.seconds) == pytest.approx(min(slower.values()), rel=1e-12)
    assert slower[split.layers[0]] == pytest.approx(min(slower.values()), rel=1e-12)


def test_equal_devices_have_half_the_layers_each() -> None:
    assert split_layers(DevicePair(A100, A100), LLAMA, "bfloat16", STEP).layers == (16, 16)


def test_the_faster_device_has_more_layers_in_either_order() -> None:
    forth = split_layers(DevicePair(A100, A10), LLAMA, "bfloat16", STEP)
    back = split_layers(DevicePair(A10, A100), LLAMA, "bfloat16", STEP)
    assert forth.layers[0] > 2 * forth.layers[1]
    assert back.layers == (forth.layers[1], forth.layers[0])
    assert back.kv_tokens == forth.kv_tokens


@pytest.mark.parametrize("model", [LLAMA, QWEN, find_model("SmolLM2-135M")], ids=lambda model: model.name)
def test_stages_together_are_the_model(model: ModelSpec) -> None:
    first, second = stage_model(model, 3), stage_model(model, model.layers - 3)
    assert first.linear_params + second.linear_params == model.linear_params
    assert first.kv_bytes_per_token("float16") + second.kv_bytes_per_token("float16") == model.kv_bytes_per_token(
        "float16"
    )
    # A norm too many, and a tied embedding at both ends.
    copies = model.hidden + (model.vocab * model.hidden if model.tied else 0)
    assert first.params + second.params == model.params + copies


def test_two_stages_on_one_device_take_as_long_as_the_whole() -> None:
    chunks, decodes, context = [(400, 300)], 100, 110_000
    whole = RooflineTimer(A30, LLAMA, "float16").step_seconds(chunks, decodes, context)
    parts = [
        timer.step_seconds(chunks, decodes, context)
        for timer in stage_timers(DevicePair(A30, A30), LLAMA, "float16", (11, 21))
    ]
    # Each stage has the overhead of a step; the products take longer than the weights in all three.
    assert sum(parts) == pytest.approx(whole + A30.step_overhead_s, rel=1e-12)


def test_the_filled_step_has_requests_in_the_proportion_of_their_tokens() -> None:
    step = filled_step(500, prompt_tokens=300, output_tokens=100)
    assert step == StepShape(chunk_tokens=375, chunk_context=150, decodes=125, decode_context=125 * 350)
    assert filled_step(10, 1, 1000).chunk_tokens == 1
    with pytest.raises(ConfigError, match="budget of at least 2"):
        filled_step(1, 10, 10)


# ---------------------------------------------------------------- memory


def with_memory(device: DeviceSpec, mib: float) -> DeviceSpec:
    return msgspec.structs.replace(device, memory_mib=Figure(mib, "x"))


def test_the_stage_with_less_room_bounds_the_tokens() -> None:
    split = split_layers(DevicePair(A100, A10), LLAMA, "bfloat16", STEP)
    rooms = [
        kv_capacity_tokens(device, stage_model(LLAMA, layers), "bfloat16")
        for device, layers in zip((A100, A10), split.layers, strict=True)
    ]
    assert split.kv_tokens == min(rooms)


def test_of_equally_fast_splits_the_one_with_more_room_is_taken() -> None:
    model = msgspec.structs.replace(LLAMA, layers=3)
    large_first = DevicePair(A10, with_memory(A10, 6000))
    large_second = DevicePair(large_first.second, large_first.first)
    assert split_layers(large_first, model, "bfloat16", STEP).layers == (2, 1)
    assert split_layers(large_second, model, "bfloat16", STEP).layers == (1, 2)


@given(tokens=st.integers(1, 900_000))
def test_only_splits_with_room_are_taken(tokens: int) -> None:
    pair = DevicePair(A100, with_memory(A10, 6000))
    rooms = {
        first: min(_room(device, layers) for device, layers in zip(pair, (first, LLAMA.layers - first), strict=True))
        for first in range(1, LLAMA.layers)
    }
    able = [first for first, room in rooms.items() if room >= tokens]
    if not able:
        with pytest.raises(InfeasibleError, match=f"at most {max(rooms.values())} tokens"):
            split_layers(pair, LLAMA, "bfloat16", STEP, kv_tokens=tokens)
        return
    split = split_layers(pair, LLAMA, "bfloat16", STEP, kv_tokens=tokens)
    assert split.kv_tokens == rooms[split.layers[0]] >= tokens
    best = min(
        max(
            stage_seconds(pair.first, LLAMA, first, STEP),
            stage_seconds(pair.second, LLAMA, LLAMA.layers - first, STEP),
        )
        for first in able
    )
    assert max(split.seconds) == pytest.approx(best, rel=1e-12)


def _room(device: DeviceSpec, layers: int) -> int:
    try:
        return kv_capacity_tokens(device, stage_model(LLAMA, layers), "bfloat16")
    except InfeasibleError:
        return 0


def test_a_model_that_fits_no_pair_says_so() -> None:
    with pytest.raises(InfeasibleError, match=r"Llama2-70B in bfloat16 does not fit A10 and A30 however"):
        split_layers(DevicePair(A10, A30), find_model("Llama2-70B"), "bfloat16", STEP)
    single = ModelSpec(name="one", layers=1, hidden=64, heads=2, kv_heads=2, head_dim=32, intermediate=128, vocab=100)
    with pytest.raises(InfeasibleError, match="its 1 layers are split: at most 0 tokens"):
        split_layers(DevicePair(A10, A30), single, "bfloat16", STEP)


def test_the_instance_says_what_it_is() -> None:
    pair = DevicePair(A100, A10)
    split = split_layers(pair, QWEN, "bfloat16", STEP)
    link = LinkSpec(12.5e9)
    instance = pipelined_instance("pp", pair, QWEN, "bfloat16", split, link, budget=512)
    assert instance.role is Role.DECODE
    assert (instance.kv_tokens, instance.budget) == (split.kv_tokens, 512)
    assert instance.pipeline is not None
    assert instance.pipeline.layers == split.layers
    assert instance.pipeline.bytes_per_token == 3584 * 2
    shape = (((STEP.chunk_tokens, STEP.chunk_context),), STEP.decodes, STEP.decode_context)
    assert instance.timer.step_seconds(*shape) == split.seconds[0]
    assert instance.pipeline.later[0].step_seconds(*shape) == split.seconds[1]
