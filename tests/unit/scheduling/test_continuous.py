"""The batch decision on hand-made cases: each rule of its description, one test."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduling.continuous import (
    BatchLimits,
    Growth,
    Phase,
    SequenceView,
    Work,
    admit,
    decide,
    grow,
    share_budget,
)

LIMITS = BatchLimits(block_size=4, max_sequences=8, budget=16)


def running(key: int, known: int, computed: int, blocks: int | None = None) -> SequenceView:
    held = LIMITS.blocks_for(known) if blocks is None else blocks
    return SequenceView(key, Phase.RUNNING, known, computed, held, held)


def waiting(key: int, known: int, *, external: bool = False) -> SequenceView:
    return SequenceView(key, Phase.WAITING, known, 0, 0, 0, external)


def test_nothing_to_do() -> None:
    assert not decide([], 10, LIMITS).work


def test_decodes_come_before_chunks() -> None:
    plan = decide([running(1, 40, 0), running(2, 10, 9), running(3, 7, 6)], 10, LIMITS)
    assert plan.work == (Work(2, 1), Work(3, 1), Work(1, 14))


def test_budget_is_never_exceeded_by_decodes() -> None:
    limits = BatchLimits(block_size=4, max_sequences=8, budget=2)
    plan = decide([running(key, 10, 9) for key in range(4)], 10, limits)
    assert [item.key for item in plan.work] == [0, 1]


def test_admission_is_first_come_first_served_and_keeps_a_reserve() -> None:
    # Request 1 needs 3 of the 3 free blocks, but one stays in reserve for the running sequence; 2 may not overtake it.
    plan = decide([running(0, 6, 5), waiting(1, 12), waiting(2, 4)], 3, LIMITS)
    assert plan.admit == ()
    assert decide([running(0, 6, 5), waiting(1, 12), waiting(2, 4)], 4, LIMITS).admit == (1,)


def test_an_idle_engine_admits_what_just_fits() -> None:
    assert decide([waiting(1, 12)], 3, LIMITS).admit == (1,)
    assert decide([waiting(1, 13)], 3, LIMITS).admit == ()


def test_admission_stops_at_the_slots() -> None:
    limits = BatchLimits(block_size=4, max_sequences=2, budget=16)
    receiving = SequenceView(0, Phase.RECEIVING, 4, 0, 1, 1)
    assert decide([receiving, waiting(1, 4), waiting(2, 4)], 100, limits).admit == (1,)


def test_a_sequence_whose_kv_comes_from_outside_is_admitted_but_not_computed() -> None:
    plan = decide([waiting(1, 8, external=True)], 10, LIMITS)
    assert (plan.admit, plan.work) == ((1,), ())


def test_an_admitted_prompt_is_computed_in_the_same_step() -> None:
    assert decide([waiting(1, 8)], 10, LIMITS).work == (Work(1, 8),)


def test_a_decode_grows_by_a_block_at_a_boundary_only() -> None:
    assert decide([running(1, 8, 7)], 1, LIMITS).grow == ()
    plan = decide([running(1, 9, 8, blocks=2)], 1, LIMITS)
    assert (plan.grow, plan.preempt, plan.work) == ((1,), (), (Work(1, 1),))


def test_the_newest_is_preempted_for_the_oldest() -> None:
    plan = decide([running(1, 9, 8, blocks=2), running(2, 5, 4, blocks=2), running(3, 6, 5)], 0, LIMITS)
    assert (plan.preempt, plan.grow) == ((3,), (1,))
    assert plan.work == (Work(1, 1), Work(2, 1))


def test_nobody_is_admitted_in_a_step_that_preempts() -> None:
    plan = decide([running(1, 9, 8, blocks=2), running(2, 6, 5), waiting(3, 1)], 0, LIMITS)
    assert (plan.preempt, plan.admit) == ((2,), ())


def test_the_only_running_sequence_gives_way_to_kv_on_its_way_in() -> None:
    receiving = SequenceView(0, Phase.RECEIVING, 40, 0, 10, 10)
    plan = decide([receiving, running(1, 9, 8, blocks=2)], 0, LIMITS)
    assert (plan.preempt, plan.work) == ((1,), ())


def test_a_long_prompt_holds_up_a_short_one_for_no_step() -> None:
    plan = decide([running(1, 4000, 16, blocks=1000), waiting(2, 8)], 100, LIMITS)
    assert plan.work == (Work(1, 8), Work(2, 8))


def test_unused_shares_go_to_the_oldest() -> None:
    plan = decide([running(1, 100, 0, blocks=25), running(2, 3, 0)], 100, LIMITS)
    assert plan.work == (Work(1, 13), Work(2, 3))


def test_a_prefill_instance_computes_one_whole_prompt_per_step() -> None:
    limits = BatchLimits(block_size=4, max_sequences=8, prompts_per_step=1)
    plan = decide([waiting(1, 50), waiting(2, 30)], 100, limits)
    assert (plan.admit, plan.work) == ((1, 2), (Work(1, 50),))


def test_prefill_chunk_bounds_each_prompt() -> None:
    limits = BatchLimits(block_size=4, max_sequences=8, prompts_per_step=1, chunk=20)
    assert decide([running(1, 50, 20, blocks=13)], 100, limits).work == (Work(1, 20),)
    assert decide([running(1, 50, 40, blocks=13)], 100, limits).work == (Work(1, 10),)


def test_admission_reads_no_further_than_the_first_that_does_not_fit() -> None:
    def known() -> Iterator[int]:
        yield 8
        yield 12
        raise AssertionError("this one was not to be asked for")

    # With 3 of 4 free blocks wanted and one sequence running, the second would eat into the reserve.
    assert admit(known(), holders=1, running=1, free_blocks=4, limits=LIMITS) == 1


def test_enough_blocks_for_all_preempt_nobody() -> None:
    # The simulator does not ask in this case, and relies on the answer.
    views = [running(1, 9, 8, blocks=2), running(2, 6, 5), running(3, 5, 4, blocks=1), running(4, 9, 2)]
    assert grow(views, 2, LIMITS) == Growth(preempted=(), grown=(1, 3), free_blocks=0)
    assert grow(views, 1, LIMITS) == Growth(preempted=(4,), grown=(1, 3), free_blocks=2)


@pytest.mark.parametrize(
    ("pending", "budget", "counts"),
    [
        ([], 5, []),
        ([3, 4], None, [3, 4]),
        ([3, 4], 7, [3, 4]),
        ([9], 8, [8]),
        ([9, 9], 8, [4, 4]),
        ([9, 9, 9], 8, [4, 2, 2]),
        ([9, 1, 9], 8, [5, 1, 2]),
        ([2, 1, 9], 8, [2, 1, 5]),
        ([9, 9, 9, 9, 9, 9], 8, [8, 0, 0, 0, 0, 0]),
        ([9, 9], 0, [0, 0]),
    ],
)
def test_the_oldest_prompt_gets_half_and_the_others_share_the_rest(
    pending: list[int], budget: int | None, counts: list[int]
) -> None:
    assert share_budget(pending, budget, LIMITS) == counts


@given(
    pending=st.lists(st.integers(1, 60), max_size=9),
    budget=st.integers(0, 80),
    chunk=st.none() | st.integers(1, 20),
    prompts_per_step=st.none() | st.integers(1, 4),
)
def test_a_budget_is_neither_exceeded_nor_left_over(
    pending: list[int], budget: int, chunk: int | None, prompts_per_step: int | None
) -> None:
    limits = BatchLimits(4, 8, 100, chunk, prompts_per_step)
    counts = share_budget(pending, budget, limits)
    wants = [min(want, chunk or want) for want in pending[:prompts_per_step]]
    assert len(counts) == len(pending)
    assert all(0 <= count <= want for count, want in zip(counts, wants, strict=False))
    assert sum(counts) == min(budget, sum(wants))
    assert not any(counts[len(wants) :])
    if wants:
        assert counts[0] >= min(wants[0], budget // 2)
