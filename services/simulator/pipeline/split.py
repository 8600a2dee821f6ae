"""How the layers of a model are split between two devices, and the pipelined instance that this makes."""

from typing import NamedTuple

import msgspec

from common.config.types import DType
from common.costs.shape import StepShape
from common.errors import ConfigError
from common.kv.layout import KVDType
from common.messages.control import Role
from services.simulator.cluster.cluster import SimulatedInstance
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.memory import UTILISATION, InfeasibleError, kv_capacity_tokens
from services.simulator.hardware.models import ModelSpec
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.stages import stage_model
from services.simulator.links import LinkSpec
from services.simulator.pipeline.line import PipelineSpec


class DevicePair(NamedTuple):
    """The devices of the two stages: the first holds the embedding, the second the output projection."""

    first: DeviceSpec
    second: DeviceSpec


class LayerSplit(msgspec.Struct, frozen=True):
    """One way to split the layers, and what comes of it."""

    layers: tuple[int, int]
    """Of each stage, at least 1."""
    seconds: tuple[float, float]
    """Of each stage for the step that the split was chosen for."""
    kv_tokens: int
    """Tokens whose KV both stages hold for their layers."""


def filled_step(budget: int, prompt_tokens: float, output_tokens: float) -> StepShape:
    """A step that fills `budget`, of an instance that never waits for requests of these mean lengths.

    Every request brings `prompt_tokens` of chunks and `output_tokens` decodes, so steps have them in this proportion;
    on average a request is half through its prompt, or its output.  Raises ConfigError.
    """
    if budget < 2 or prompt_tokens < 1 or output_tokens < 1:
        raise ConfigError(
            f"a step of {budget} tokens for requests of {prompt_tokens} and {output_tokens}: give a budget of at least "
            "2, and lengths of at least 1"
        )
    decodes = min(budget - 1, round(budget * output_tokens / (prompt_tokens + output_tokens)))
    return StepShape(
        chunk_tokens=budget - decodes,
        chunk_context=round(prompt_tokens / 2),
        decodes=decodes,
        decode_context=round(decodes * (prompt_tokens + output_tokens / 2)),
    )


def split_layers(
    pair: DevicePair,
    model: ModelSpec,
    dtype: DType,
    step: StepShape,
    *,
    utilisation: float = UTILISATION,
    kv_tokens: int = 1,
) -> LayerSplit:
    """The split whose slower stage takes least for `step`, of those that leave room for `kv_tokens` tokens of KV.

    Every split is tried. Among equals the one with more room, then the one with fewer layers at the first stage.
    Raises InfeasibleError where none fits, ConfigError for a dtype that a device lacks.
    """
    tried = [_split(pair, model, dtype, step, first, utilisation) for first in range(1, model.layers)]
    fitting = [split for split in tried if split.kv_tokens >= max(1, kv_tokens)]
    if not fitting:
        most = max((split.kv_tokens for split in tried), default=0)
        raise InfeasibleError(
            f"{model.name} in {dtype} does not fit {pair.first.name} and {pair.second.name} however its "
            f"{model.layers} layers are split: at most {most} tokens of KV where {max(1, kv_tokens)} are wanted; take "
            "devices with more memory, a smaller model, or fewer tokens"
        )
    return min(fitting, key=lambda split: (max(split.seconds), -split.kv_tokens, split.layers))


def pipelined_instance(
    name: str,
    pair: DevicePair,
    model: ModelSpec,
    dtype: DType,
    split: LayerSplit,
    link: LinkSpec,
    *,
    budget: int,
    max_batch: int = 256,
    micro_batches: int = 2,
) -> SimulatedInstance:
    """A decode instance over both devices; `budget` is of the step of one micro-batch."""
    first, second = stage_timers(pair, model, dtype, split.layers)
    return SimulatedInstance(
        name=name,
        role=Role.DECODE,
        timer=first,
        kv_tokens=split.kv_tokens,
        budget=budget,
        max_batch=max_batch,
        pipeline=PipelineSpec(
            later=(second,),
            layers=split.layers,
            bytes_per_token=model.hidden * KVDType(dtype).size_bytes,
            link=link,
            micro_batches=micro_batches,
        ),
    )


def stage_timers(
    pair: DevicePair, model: ModelSpec, dtype: DType, layers: tuple[int, int]
) -> tuple[RooflineTimer, RooflineTimer]:
    """The roofline of each stage's device for its layers; both have their device's overhead in every step."""
    first, second = layers
    return (
        RooflineTimer(pair.first, stage_model(model, first), dtype),
        RooflineTimer(pair.second, stage_model(model, second), dtype),
    )


def _split(
    pair: DevicePair, model: ModelSpec, dtype: DType, step: StepShape, first: int, utilisation: float
) -> LayerSplit:
    """The split with `first` layers at the first stage; no tokens of KV where it does not fit."""
    layers = (first, model.layers - first)
    chunks = ((step.chunk_tokens, step.chunk_context),) if step.chunk_tokens else ()
    one, two = (
        timer.step_seconds(chunks, step.decodes, step.decode_context)
        for timer in stage_timers(pair, model, dtype, layers)
    )
    room = min(
        _room(device, stage_model(model, count), dtype, utilisation) for device, count in zip(pair, layers, strict=True)
    )
    return LayerSplit(layers, (one, two), room)


def _room(device: DeviceSpec, stage: ModelSpec, dtype: DType, utilisation: float) -> int:
    try:
        return kv_capacity_tokens(device, stage, dtype, utilisation=utilisation)
    except InfeasibleError:
        return 0
