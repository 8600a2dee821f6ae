"""The way of steps through the stages and links of a pipeline: by hand, and against the longest path."""

from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.engine.events import SimulationError
from services.simulator.engine.timing import DecodeLine, StepTimer
from services.simulator.links import LinkSpec
from services.simulator.pipeline.line import PipelineLine, StepWork

INSTANT = LinkSpec(float("inf"), 0.0)


class PerToken(StepTimer):
    """So many seconds for each token."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def step_seconds(self, chunks: object, decodes: int, decode_context: int) -> float:
        return self._seconds * decodes

    def decode_line(self, decodes: int) -> DecodeLine:
        return DecodeLine(self._seconds * decodes, 0.0)


def decodes(count: int) -> StepWork:
    return StepWork(chunks=(), decodes=count, decode_context=0, sampled=count)


def test_a_step_passes_stage_link_stage_link() -> None:
    # 64 bytes/s and 0.5 s: activations of 2 tokens · 16 bytes take 0.5 + 0.5 s, 2 sampled tokens (8 bytes) 0.25 + 0.5.
    line = PipelineLine([PerToken(1.5), PerToken(1.0)], LinkSpec(64.0, 0.5), bytes_per_token=16)
    assert line.enter(decodes(2), 10.0) == 10.0 + 3.0 + 1.0 + 2.0 + 0.75
    assert line.free_at == 13.0
    assert line.busy_s == (3.0, 2.0)


def test_activations_are_of_all_tokens_and_what_comes_back_of_the_sampled_ones() -> None:
    line = PipelineLine([PerToken(1.0), PerToken(1.0)], LinkSpec(8.0, 0.0), bytes_per_token=8)
    work = StepWork(chunks=((5, 0), (3, 7)), decodes=2, decode_context=9, sampled=3)
    assert work.tokens == 10
    # Each stage 2 s (for the decodes, by this timer), 10 tokens there and 3 back.
    assert line.enter(work, 0.0) == 2.0 + 10.0 + 2.0 + 3.0


def test_a_step_waits_for_the_stage_and_for_the_link() -> None:
    slow_second = PipelineLine([PerToken(1.0), PerToken(3.0)], INSTANT, bytes_per_token=2)
    assert [slow_second.enter(decodes(1), at) for at in (0.0, 1.0, 2.0)] == [4.0, 7.0, 10.0]
    # 4 s on the link for each, one after the other; the second step is through it at 9 s.
    slow_link = PipelineLine([PerToken(1.0), PerToken(1.0)], LinkSpec(2.0, 0.0), bytes_per_token=8)
    assert [slow_link.enter(decodes(1), at) for at in (0.0, 1.0)] == [6.0 + 4.0, 10.0 + 4.0]


def test_one_stage_alone_sends_nothing() -> None:
    line = PipelineLine([PerToken(2.0)], LinkSpec(1.0, 100.0), bytes_per_token=1000)
    assert line.enter(decodes(3), 1.0) == 7.0


def test_what_cannot_be_is_refused() -> None:
    line = PipelineLine([PerToken(2.0), PerToken(0.0)], INSTANT, bytes_per_token=1)
    line.enter(decodes(1), 0.0)
    with pytest.raises(SimulationError, match=r"enters at 1\.0 s"):
        line.enter(decodes(1), 1.0)
    with pytest.raises(SimulationError, match="no time in any stage"):
        PipelineLine([PerToken(0.0), PerToken(0.0)], INSTANT, 1).enter(decodes(1), 0.0)
    with pytest.raises(SimulationError, match=r"stage 1 takes -1\.0 s"):
        PipelineLine([PerToken(2.0), PerToken(-1.0)], INSTANT, 1).enter(decodes(1), 0.0)


@given(
    steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=5),
    stages=st.lists(st.integers(0, 5), min_size=2, max_size=3),
    first=st.integers(1, 5),
    latency=st.integers(0, 3),
)
def test_a_step_ends_where_the_longest_path_does(
    steps: list[tuple[int, int]], stages: list[int], first: int, latency: int
) -> None:
    """In a row of queues a customer leaves at the latest, over every earlier arrival and every way from it to here by
    "the next place" and "the next customer", of that arrival and the service on the way (Glynn and Whitt 1991).
    """
    seconds = [first, *stages]
    line = PipelineLine([PerToken(float(each)) for each in seconds], LinkSpec(8.0, float(latency)), bytes_per_token=16)
    entered: list[float] = []
    ended: list[float] = []
    for count, after in steps:
        entered.append(max(line.free_at, (entered[-1] if entered else 0.0) + after))
        ended.append(line.enter(decodes(count), entered[-1]))
    # Places: each stage and the link after it: 2 s per token between stages, 1 s back.
    per_token = [*[each for stage in seconds for each in (stage, 2)][:-1], 1]
    for last in range(len(steps)):
        longest = max(
            entered[begin] + path_seconds(turns, begin, last, per_token, [count for count, _ in steps])
            for begin in range(last + 1)
            for turns in combinations_with_replacement(range(len(per_token)), last - begin)
        )
        assert ended[last] == longest + latency * len(seconds)


def path_seconds(turns: tuple[int, ...], begin: int, last: int, per_token: list[int], counts: list[int]) -> int:
    """Along the places, with a turn to the next customer at each place in `turns`."""
    total, customer = 0, begin
    for place, each in enumerate(per_token):
        total += each * counts[customer]
        for _ in range(turns.count(place)):
            customer += 1
            total += each * counts[customer]
    assert customer == last
    return total


def test_the_path_by_hand() -> None:
    # A token takes 1 s at the first place and 5 s at the second; the second customer has two tokens.
    assert path_seconds((0,), 0, 1, [1, 5], [1, 2]) == 1 + 2 + 10
    assert path_seconds((1,), 0, 1, [1, 5], [1, 2]) == 1 + 5 + 10
