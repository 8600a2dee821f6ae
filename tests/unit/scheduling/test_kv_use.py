"""The most KV that sequences come to: by hand, and against growing them one token at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduling.ledgers.kv_use import peak_tokens
from services.scheduling.ledgers.work_ledger import Mix, Share, Work


def work_of(*sequences: tuple[int, int]) -> Work:
    """(KV held, tokens to come) of each."""
    total = Work()
    for held, output in sequences:
        total = total.plus(Work.of(Share(0, held, output, output)))
    return total


def grown(sequences: list[tuple[int, int]]) -> int:
    """Token by token; one that has its last token is gone."""
    longest = max(output for _, output in sequences)
    return max(sum(held + step for held, output in sequences if output >= step) for step in range(longest + 1))


def test_nothing_needs_nothing() -> None:
    assert peak_tokens(Work()) == 0.0


def test_sequences_alike_are_all_largest_at_the_end() -> None:
    assert peak_tokens(work_of(*[(100, 50)] * 4)) == 4 * 150


def test_one_by_itself_comes_to_all_that_it_is() -> None:
    assert peak_tokens(work_of((700, 300))) == 1000


def test_two_are_what_two_are() -> None:
    """Both after 50 steps, or one after 450: 2 · (400 + 50), 1 · (400 + 450)."""
    assert grown([(400, 50), (400, 450)]) == 900
    # Between these the number of sequences is taken to fall evenly: 1.4 of 637 tokens after 237 steps.
    assert peak_tokens(work_of((400, 50), (400, 450))) == pytest.approx((450 + 400 - 225) * (400 + 225) / 400)


def test_long_prompts_with_unlike_answers_never_hold_much_more_than_now() -> None:
    """The tokens to come are 1 to 99: most is held when the first ends."""
    sequences = [(1000, output) for output in range(1, 100)]
    assert peak_tokens(work_of(*sequences)) == pytest.approx(99 * 1001)
    assert grown(sequences) == 99 * 1001


def test_short_prompts_with_unlike_answers_are_largest_half_way() -> None:
    """Nothing held, 2 to 200 to come: after 101 steps 50.5 sequences have as many tokens."""
    sequences = [(0, output) for output in range(2, 201, 2)]
    assert peak_tokens(work_of(*sequences)) == pytest.approx(101 * 50.5)
    assert grown(sequences) == 100 * 51


@given(st.integers(0, 400), st.integers(0, 300), st.integers(0, 40), st.integers(2, 60))
def test_it_is_right_where_lengths_are_in_even_steps(held: int, first: int, step: int, count: int) -> None:
    """But that the number of sequences is no whole one between the steps."""
    sequences = [(held, first + step * number) for number in range(count)]
    peak, truth = peak_tokens(work_of(*sequences)), grown(sequences)
    assert truth * (1 - 1e-9) <= peak + 1e-6
    assert peak <= truth + held + first + step * count


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 500)), min_size=1, max_size=40))
def test_it_lies_between_what_is_held_and_what_all_come_to(sequences: list[tuple[int, int]]) -> None:
    held, everything = sum(kv for kv, _ in sequences), sum(kv + output for kv, output in sequences)
    assert held - 1e-6 <= peak_tokens(work_of(*sequences)) <= everything + 1e-6


def test_one_long_answer_among_many_that_are_over_needs_no_more_than_itself() -> None:
    sequences = [(1, 0)] * 39 + [(1, 500)]
    assert peak_tokens(work_of(*sequences)) == 540


def test_what_the_mix_says_is_not_looked_at_but_for_the_number() -> None:
    assert peak_tokens(Work(kv_tokens=10, mix=Mix(sequences=2, kv_tokens=999, output_tokens=999))) == 10
