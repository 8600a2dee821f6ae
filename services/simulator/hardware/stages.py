"""A model divided among stages, and the time models that this makes."""

import msgspec

from common.config.types import DType
from common.errors import ConfigError
from common.kv.layout import KVDType
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.interconnect import START_S, machine_link
from services.simulator.hardware.models import ModelSpec
from services.simulator.hardware.pipelined import PipelinedTimer
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.strategy import Strategy, strategies, unsuitable
from services.simulator.links import LinkSpec


def stage_model(model: ModelSpec, layers: int) -> ModelSpec:
    """A first or last stage with `layers` of a model's layers, as a model: times, weights and KV follow from it.

    Both have one of the two vocab × hidden matrices: the first the embedding, the last the output projection, and each
    where they are tied.  (The first also gets the last norm, `hidden` numbers that it has not.)
    """
    return msgspec.structs.replace(model, layers=layers, tied=True)


def stage_models(model: ModelSpec, pp: int) -> tuple[ModelSpec, ...]:
    """The stages of `pp`, as models, with equal shares of the layers.

    Layers that are left over go, one each, first to those between the ends, which have no vocab × hidden matrix.
    """
    if pp == 1:
        return (model,)
    least, left = divmod(model.layers, pp)
    ends = (0, pp - 1)
    larger = sorted(range(pp), key=lambda stage: (stage in ends, stage))[:left]
    return tuple(_stage(model, least + (stage in larger), is_end=stage in ends) for stage in range(pp))


def step_timer(
    device: DeviceSpec,
    model: ModelSpec,
    dtype: DType,
    strategy: Strategy = Strategy(),
    link: LinkSpec | None = None,
) -> RooflineTimer | PipelinedTimer:
    """The time of one step of an instance over `strategy` of such devices; a PipelinedTimer for more than one stage.

    Each device of a stage hands its activations, whole, to its counterpart in the next one.  `link` as machine_link
    has it, and is used for all exchanges; None: machine_link's own, which may differ within stages and between them.
    Raises ConfigError for a strategy that does not suit the model, or a dtype that the device lacks.
    """
    require_suitable(model, strategy)
    within = link or machine_link(device, strategy.tp)
    stages = stage_models(model, strategy.pp)
    timers = [RooflineTimer(device, stage, dtype, tp=strategy.tp, link=within) for stage in stages]
    if strategy.pp == 1:
        return timers[0]
    between = link or machine_link(device, strategy.devices)
    return PipelinedTimer(
        timers,
        [stage.layers for stage in stages],
        LinkSpec(between.bytes_per_s, START_S + between.latency_s),
        model.hidden * KVDType(dtype).size_bytes,
    )


def require_suitable(model: ModelSpec, strategy: Strategy) -> None:
    """Raise ConfigError for a strategy that suits `model` on no machine."""
    if (reason := unsuitable(model, strategy, strategy.devices)) is not None:
        suitable = ", ".join(map(str, strategies(model, 8)))
        raise ConfigError(f"{reason}; on a machine of 8 devices it can be {suitable}")


def _stage(model: ModelSpec, layers: int, *, is_end: bool) -> ModelSpec:
    return stage_model(model, layers) if is_end else msgspec.structs.replace(model, layers=layers, tied=True, vocab=0)
