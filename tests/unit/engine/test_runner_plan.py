"""The flat row of a step: who lies where, and who is padded with whom."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.runner import StepItem
from services.engine.step_plan import Chunk, group_by_context, plan_step


def item(tokens: Sequence[int], start: int, blocks: Sequence[int]) -> StepItem:
    return StepItem(tokens=tokens, start=start, blocks=blocks)


def test_decodes_come_first_longest_first_then_chunks_as_given() -> None:
    plan = plan_step([item((7, 8), 3, (0, 2)), item((5,), 1, (1,)), item((6,), 6, (4, 3))], block_size=4)
    assert plan.tokens == [6, 5, 7, 8]
    assert plan.positions == [6, 1, 3, 4]
    assert plan.slots == [3 * 4 + 2, 1 * 4 + 1, 0 * 4 + 3, 2 * 4]
    assert plan.last_rows == [3, 1, 0]
    assert plan.chunks == (Chunk(first_row=2, start=3, stop=5, blocks=(0, 2)),)


def test_stale_slots_are_the_rest_of_each_decode_s_last_block() -> None:
    plan = plan_step([item((5,), 1, (1, 9)), item((6,), 7, (4, 3))], block_size=4)
    assert sorted(plan.stale_slots) == [1 * 4 + 2, 1 * 4 + 3]


def test_item_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at position 3 without tokens"):
        plan_step([item((), 3, (0,))], block_size=4)


def test_item_with_too_few_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens \[3, 5\) with 1 blocks of 4 tokens; it needs 2"):
        plan_step([item((1, 2), 3, (0,))], block_size=4)


@given(st.lists(st.integers(1, 400), max_size=40))
def test_grouping_keeps_everyone_and_bounds_the_padding(num_blocks: list[int]) -> None:
    groups = group_by_context(range(len(num_blocks)), num_blocks)
    assert sorted(member for group in groups for member in group) == list(range(len(num_blocks)))
    for group in groups:
        widest = max(num_blocks[member] for member in group)
        assert all(widest <= max(2 * num_blocks[member], num_blocks[member] + 8) for member in group)


def test_similar_contexts_are_one_group() -> None:
    assert len(group_by_context(range(4), [20, 11, 17, 10])) == 1
    assert len(group_by_context(range(2), [200, 11])) == 2
