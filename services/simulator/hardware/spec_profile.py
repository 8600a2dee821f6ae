"""A profile computed from a specification: for machines that nobody has at hand."""

from collections.abc import Iterator

from common.config.types import DType
from common.costs.shape import StepShape
from common.errors import ConfigError
from services.scheduling.fit import fit_costs
from services.scheduling.profile import Origin, Point, Profile, Subject
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.memory import UTILISATION, kv_capacity_tokens
from services.simulator.hardware.models import ModelSpec
from services.simulator.hardware.roofline import RooflineTimer

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
) -> Profile:
    """The profile (Origin.SPEC) of `device` serving `model` alone with `budget` tokens per step.

    The points are the roofline's times of the steps that fit the device's KV; the costs are fitted to them, so their
    residuals are what a linear model loses (attention grows with the square of a prompt; small steps wait for memory).
    Raises ConfigError for a dtype the device lacks, InfeasibleError where the weights do not fit.
    """
    if budget < 16:
        raise ConfigError(f"budget is {budget!r} tokens; a step with chunks and decodes needs at least 16")
    timer = RooflineTimer(device, model, dtype)
    capacity = kv_capacity_tokens(device, model, dtype, utilisation=utilisation)
    points = tuple(spec_points(timer, budget, max_batch, capacity))
    costs, fits = fit_costs(points)
    return Profile(
        subject=Subject(model=model.name, dtype=dtype),
        origin=Origin.SPEC,
        device=device.name,
        costs=costs,
        fits=fits,
        points=points,
        kv_capacity_tokens=capacity,
    )


def spec_points(timer: RooflineTimer, budget: int, max_batch: int, capacity: int) -> Iterator[Point]:
    """A point for each step of the grid whose tokens and contexts fit `capacity`: prompts, mixed steps, decodes."""
    for length in PROMPTS:
        if length <= capacity:
            yield _point(timer, StepShape(chunk_tokens=length), is_prefill=True)
    for shape in (*_mixed_steps(budget, max_batch), *_decode_steps(max_batch)):
        if shape.tokens + shape.chunk_context + shape.decode_context <= capacity:
            yield _point(timer, shape, is_prefill=False)


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


def _point(timer: RooflineTimer, shape: StepShape, *, is_prefill: bool) -> Point:
    chunks = ((shape.chunk_tokens, shape.chunk_context),) if shape.chunk_tokens else ()
    seconds = timer.step_seconds(chunks, shape.decodes, shape.decode_context)
    return Point(
        shape=shape, is_prefill=is_prefill, seconds=seconds, seconds_min=seconds, seconds_max=seconds, repeats=1
    )
