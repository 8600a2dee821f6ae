import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.kv.intervals import Interval
from transfer.rectangles import Coverage, Rectangle, SegmentSchedule


def rectangle(l0: int, l1: int, t0: int, t1: int) -> Rectangle:
    return Rectangle(Interval(l0, l1), Interval(t0, t1))


@given(
    layers=st.integers(1, 6),
    num_tokens=st.integers(1, 40),
    held=st.integers(0, 39),
    max_area=st.integers(1, 60),
    block_size=st.integers(1, 9),
    news=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=12),
)
def test_a_schedule_sends_what_is_ready_and_covers_exactly(
    layers: int, num_tokens: int, held: int, max_area: int, block_size: int, news: list[tuple[int, int]]
) -> None:
    span, held = Interval(3, 3 + layers), min(held, num_tokens - 1)
    schedule, ready = SegmentSchedule(span, max_area, block_size, held), [0] * layers
    coverage = Coverage(span, Interval(held, num_tokens))
    for layer, stop in [*news, *((layer, num_tokens) for layer in range(layers))]:
        if layer < layers:
            ready[layer] = max(ready[layer], min(stop, num_tokens))
        while (part := schedule.next(ready)) is not None:
            assert 0 < part.area <= max_area
            assert all(part.tokens.stop <= ready[at - 3] for at in range(part.layers.start, part.layers.stop))
            assert coverage.add(part) is None
    assert coverage.is_complete


def test_small_layers_share_a_segment_and_large_ones_are_cut() -> None:
    schedule = SegmentSchedule(Interval(0, 5), 20)
    assert schedule.next([8, 8, 8, 0, 0]) == rectangle(0, 2, 0, 8)
    assert schedule.next([8, 8, 8, 50, 0]) == rectangle(2, 4, 0, 8), "the same tokens of both"
    assert schedule.next([8, 8, 8, 50, 50]) == rectangle(4, 5, 0, 20), "oldest tokens first, cut at a token"
    assert schedule.next([50, 8, 8, 50, 50]) == rectangle(0, 1, 8, 28)
    assert schedule.next([28, 8, 8, 8, 20]) is None


def test_a_cut_falls_between_blocks_where_it_can() -> None:
    schedule = SegmentSchedule(Interval(0, 1), 10, 4)
    assert schedule.next([21]) == rectangle(0, 1, 0, 8)
    assert schedule.next([21]) == rectangle(0, 1, 8, 16)
    assert schedule.next([21]) == rectangle(0, 1, 16, 21)
    assert SegmentSchedule(Interval(0, 1), 3, 4).next([17]) == rectangle(0, 1, 0, 3)


def test_a_segment_holds_at_least_a_token() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        SegmentSchedule(Interval(0, 1), 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=25))
def test_coverage_counts_like_a_set(parts: list[tuple[int, int, int, int]]) -> None:
    coverage, seen = Coverage(Interval(0, 3), Interval(0, 9)), set[tuple[int, int]]()
    for a, b, c, d in parts:
        part = rectangle(min(a, b), max(a, b), min(c, d), max(c, d))
        cells = {(layer, token) for layer in range(min(a, b), max(a, b)) for token in range(min(c, d), max(c, d))}
        problem = coverage.add(part)
        assert (problem is None) == (bool(cells) and not cells & seen)
        if problem is None:
            seen |= cells
        assert coverage.is_complete == (len(seen) == 27)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (rectangle(0, 2, 0, 10), "outside"),
        (rectangle(0, 4, 0, 1), "outside"),
        (rectangle(1, 1, 0, 5), "empty"),
        (rectangle(0, 1, 4, 6), "overlaps"),
    ],
)
def test_what_does_not_fit_is_said_and_changes_nothing(part: Rectangle, why: str) -> None:
    coverage = Coverage(Interval(0, 3), Interval(0, 9))
    assert coverage.add(rectangle(0, 3, 0, 5)) is None
    assert why in (coverage.add(part) or "")
    assert coverage.add(rectangle(0, 3, 5, 9)) is None
    assert coverage.is_complete
