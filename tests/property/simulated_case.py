"""What both properties of the simulated engine draw and record."""

from collections.abc import Sequence
from typing import Protocol

from hypothesis import strategies as st

from services.scheduling.continuous import BatchLimits


class Gaps:
    """One by one, whatever way they came."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def record_gap(self, seconds: float, count: int) -> None:
        self.all += [seconds] * count

    def record_run(self, first: float, increment: float, steps: int, count: int) -> None:
        for index in range(steps):
            self.record_gap(first + index * increment, count)


class Sized(Protocol):
    """A job, as far as the room that it needs."""

    prompt: int
    output: int


@st.composite
def bounds(draw: st.DrawFn) -> BatchLimits:
    slots = draw(st.integers(1, 6))
    return BatchLimits(
        block_size=draw(st.sampled_from([1, 2, 3, 4, 16])),
        max_sequences=slots,
        budget=draw(st.sampled_from([None, slots, slots + 1, slots + 7, 32])),
        chunk=draw(st.sampled_from([None, None, 1, 5])),
        prompts_per_step=draw(st.sampled_from([None, None, 1, 2])),
    )


def room(work: Sequence[Sized], limits: BatchLimits, spare: int) -> int:
    """Blocks for the largest job alone, and some more."""
    return max(limits.blocks_for(job.prompt + max(0, job.output - 1)) for job in work) + spare
