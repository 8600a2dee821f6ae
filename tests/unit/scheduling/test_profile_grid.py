"""The grid of steps: it fits the instance, tells every variable apart, and is refused where it cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from common.costs.step import Step
from services.scheduling.profiles.fit import fit_costs
from services.scheduling.profiles.profile import ProfileError
from services.scheduling.profiles.profile_grid import FULL, QUICK, STARTUP, GridLimits, GridSize, grid_steps, point_of

COSTS = InstanceCosts(
    prefill=PrefillCost(0.03, 0.002),
    mixed=MixedStepCost(0.04, 0.0021, 1.5e-5, 1.2e-5),
    decode=DecodeStepCost(0.05, 0.004, 1.1e-5),
)


def blocks(tokens: int, size: int) -> int:
    return -(-tokens // size)


@given(
    context_length=st.integers(256, 10_000),
    num_blocks=st.integers(64, 4096),
    block_size=st.sampled_from([8, 16, 32]),
    max_batch=st.integers(1, 24),
    budget=st.one_of(st.none(), st.integers(1, 2048)),
    size=st.sampled_from([STARTUP, QUICK, FULL]),
)
def test_every_step_fits_and_together_they_can_be_fitted(
    context_length: int, num_blocks: int, block_size: int, max_batch: int, budget: int | None, size: GridSize
) -> None:
    limits = GridLimits(context_length, num_blocks * block_size, block_size, max_batch, budget)
    try:
        steps = grid_steps(limits, size)
    except ProfileError:
        # A cache so small that each sequence of a batch has a few blocks.
        assert num_blocks < 16 * max(2, max_batch)
        return
    assert len(set(steps)) == len(steps)
    for step in steps:
        shape = step.shape
        longest = blocks(shape.decode_context, max(1, shape.decodes)) + 1
        needed = blocks(shape.chunk_tokens + shape.chunk_context, block_size)
        needed += shape.decodes * blocks(longest, block_size)
        assert needed <= num_blocks, step
        assert max(shape.chunk_tokens + shape.chunk_context, longest) <= context_length, step
        assert shape.chunk_tokens != 1, step
        assert shape.decodes <= max(2, max_batch)
        assert min(shape.chunk_tokens, shape.chunk_context, shape.decodes, shape.decode_context) >= 0
    found, _ = fit_costs([point_of(step, [step.seconds(COSTS)]) for step in steps])
    for step in steps:
        assert step.seconds(found) == pytest.approx(step.seconds(COSTS), rel=1e-6)


def test_mixed_steps_keep_to_the_budget() -> None:
    steps = grid_steps(GridLimits(8192, 20_000, 16, max_batch=16, budget=128), FULL)
    mixed = [step.shape.tokens for step in steps if step.shape.chunk_tokens and not step.is_prefill]
    assert (min(mixed), max(mixed)) == (64, 128)


def test_prompts_and_contexts_go_as_far_as_asked_or_as_there_is_room() -> None:
    def longest_prompt(context_length: int, capacity: int, size: GridSize) -> int:
        steps = grid_steps(GridLimits(context_length, capacity, 16, max_batch=4, budget=64), size)
        return max(step.shape.chunk_tokens for step in steps if step.is_prefill)

    assert longest_prompt(8192, 65_536, FULL) == 2048
    assert longest_prompt(8192, 65_536, QUICK) == 512
    assert longest_prompt(1000, 65_536, FULL) == 1000
    assert longest_prompt(8192, 1024, FULL) == 1024


def test_a_quick_grid_is_small() -> None:
    limits = GridLimits(8192, 65_536, 16, max_batch=16, budget=256)
    counts = [len(grid_steps(limits, size)) for size in (STARTUP, QUICK, FULL)]
    assert counts == sorted(counts)
    assert counts[0] < 25 < counts[-1] < 80


@pytest.mark.parametrize("capacity", [16, 64])
def test_an_instance_without_room_is_refused(capacity: int) -> None:
    with pytest.raises(ProfileError, match="raise the instance's kv_memory"):
        grid_steps(GridLimits(8192, capacity, 16, max_batch=16, budget=256), QUICK)


def test_a_point_is_the_median_with_its_spread() -> None:
    step = Step(StepShape(decodes=2, decode_context=10))
    point = point_of(step, [0.3, 0.1, 0.2, 9.0])
    assert (point.seconds, point.seconds_min, point.seconds_max, point.repeats) == (0.25, 0.1, 9.0, 4)
    assert (point.shape, point.is_prefill) == (step.shape, False)
