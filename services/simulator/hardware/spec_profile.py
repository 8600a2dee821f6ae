"""A profile computed from a specification: for machines that nobody has at hand."""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from common.config.types import DType
from common.costs.models import InstanceCosts
from common.costs.shape import StepShape
from common.errors import ConfigError
from services.scheduling.profiles.fit import fit_costs
from services.scheduling.profiles.profile import Origin, Point, Profile, Subject
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.memory import UTILISATION, kv_capacity_tokens
from services.simulator.hardware.micro_batches import kept_full
from services.simulator.hardware.models import ModelSpec
from services.simulator.hardware.pipelined import PipelinedTimer
from services.simulator.hardware.stages import step_timer
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec

StepSeconds = Callable[[Sequence[tuple[int, int]], int, int], float]
"""StepTimer.step_seconds, or what else takes its arguments."""

PROMPTS = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Prompt lengths computed in one step, alone."""
CHUNK_CONTEXTS = (0, 512, 1024, 2048, 4096)
CONTEXTS = (128, 512, 1024, 2048, 4096)
"""Mean context of a sequence that decodes."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FILLED = (0.25, 0.5, 0.75, 1.0)
"""Shares of the budget that mixed steps fill."""
DECODE_SHARES = (0.0, 0.0625, 0.25)
"""Shares of a mixed step's tokens that are decodes."""


def spec_profile(
    device: DeviceSpec,
    model: ModelSpec,
    dtype: DType,
    budget: int,
    *,
    max_batch: int = 256,
    utilisation: float = UTILISATION,
    strategy: Strategy = Strategy(),
    link: LinkSpec | None = None,
) -> Profile:
    """The profile (Origin.SPEC) of an instance over `strategy` of such devices with `budget` tokens per step.

    The points are the roofline's times of the steps that fit the instance's KV; the costs are fitted to them, so their
    residuals are what a linear model loses (attention grows with the square of a prompt; small steps wait for memory).
    With several stages a step takes until it has left the last one, and computes what one micro-batch has: its share of
    the sequences that decode, of which the points, and so the costs, count all (beside a chunk, all contexts).
    `link`: see step_timer.
    Raises ConfigError for a dtype the device lacks or a strategy that does not suit the model, InfeasibleError where
    the weights do not fit.
    """
    if budget < 16:
        raise ConfigError(f"budget is {budget!r} tokens; a step with chunks and decodes needs at least 16")
    timer = step_timer(device, model, dtype, strategy, link)
    capacity = kv_capacity_tokens(device, model, dtype, strategy=strategy, utilisation=utilisation)
    micro_batches = strategy.pp
    steps = spec_points(timer.step_seconds, budget, -(-max_batch // micro_batches), capacity // micro_batches)
    points = tuple(_of_all_micro_batches(point, micro_batches) for point in steps)
    costs, fits = fit_costs(points)
    return Profile(
        subject=Subject(model=model.name, dtype=dtype, tp=strategy.tp, pp=strategy.pp),
        origin=Origin.SPEC,
        device=device.name,
        costs=costs,
        fits=fits,
        points=points,
        kv_capacity_tokens=capacity,
    )


def spec_throughput(timer: PipelinedTimer, budget: int, max_batch: int, capacity: int) -> InstanceCosts:
    """The costs of a pipeline that is kept full (see micro_batches.kept_full), fitted to its slowest stage."""
    micro_batches = len(timer.stages)
    points = spec_points(timer.slowest_seconds, budget, -(-max_batch // micro_batches), capacity // micro_batches)
    return kept_full(fit_costs(tuple(points))[0], micro_batches)


def spec_points(step_seconds: StepSeconds, budget: int, max_batch: int, capacity: int) -> Iterator[Point]:
    """A point for each step of the grid whose tokens and contexts fit `capacity`: prompts, mixed steps, decodes."""
    for length in PROMPTS:
        if length <= capacity:
            yield _point(step_seconds, StepShape(chunk_tokens=length), is_prefill=True)
    for shape in (*_mixed_steps(budget, max_batch), *_decode_steps(max_batch)):
        if shape.tokens + shape.chunk_context + shape.decode_context <= capacity:
            yield _point(step_seconds, shape, is_prefill=False)


def _mixed_steps(budget: int, max_batch: int) -> Iterator[StepShape]:
    """One chunk and some decodes, in steps that fill all or a part of the budget."""
    for filled in FILLED:
        tokens = round(budget * filled)
        for decodes in sorted({min(max_batch, round(tokens * share)) for share in DECODE_SHARES}):
            for chunk_context in CHUNK_CONTEXTS:
                for context in CONTEXTS if decodes else (0,):
                    yield StepShape(tokens - decodes, chunk_context, decodes, decodes * context)


def _decode_steps(max_batch: int) -> Iterator[StepShape]:
    # One batch size alone would not tell what a step costs from what each of its sequences costs.
    for decodes in BATCHES:
        if decodes <= max(2, max_batch):
            for context in CONTEXTS:
                yield StepShape(decodes=decodes, decode_context=decodes * context)


def _point(step_seconds: StepSeconds, shape: StepShape, *, is_prefill: bool) -> Point:
    chunks = ((shape.chunk_tokens, shape.chunk_context),) if shape.chunk_tokens else ()
    seconds = step_seconds(chunks, shape.decodes, shape.decode_context)
    return Point(
        shape=shape, is_prefill=is_prefill, seconds=seconds, seconds_min=seconds, seconds_max=seconds, repeats=1
    )


def _of_all_micro_batches(point: Point, micro_batches: int) -> Point:
    """The step of one micro-batch with what the instance has that decodes: the other micro-batches are alike.

    Beside a chunk the decodes stay those of the step, for a line has one coefficient for all tokens that it computes.
    """
    shape = point.shape
    given = msgspec.structs.replace(
        shape,
        decodes=shape.decodes if shape.chunk_tokens else micro_batches * shape.decodes,
        decode_context=micro_batches * shape.decode_context,
    )
    return msgspec.structs.replace(point, shape=given)
