"""Layers × tokens: the shape of a segment, the order in which segments leave P, and what has reached D."""

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from common.kv.intervals import Interval


class Rectangle(msgspec.Struct, frozen=True):
    """The layers [l0, l1) of the tokens [t0, t1)."""

    layers: Interval
    tokens: Interval

    @property
    def area(self) -> int:
        """Layers times tokens."""
        return len(self.layers) * len(self.tokens)


class SegmentSchedule:
    """Cuts what is ready and not yet sent into segments of at most `max_area` (layers × tokens). What is before
    `first_token` is never sent.

    Oldest tokens first, then lowest layer.  A segment takes as many of its first layer's tokens as
    fit, and with them the same tokens of the layers that follow, as far as these are at the same point and fit whole.
    Where a layer must be cut it is cut at a multiple of `block_size` tokens, if that leaves anything: whole blocks copy
    faster.
    """

    def __init__(self, layers: Interval, max_area: int, block_size: int = 1, first_token: int = 0) -> None:
        if max_area < 1:
            raise ValueError(f"a segment must hold at least one token of one layer, not {max_area!r}")
        self._first_layer = layers.start
        self._max_area = max_area
        self._block_size = block_size
        self._sent = [first_token] * len(layers)

    def waiting(self, ready: Sequence[int]) -> int:
        """Layers times tokens that are computed and not yet sent, given for each layer the tokens [0, ready)."""
        return sum(max(0, stop - sent) for stop, sent in zip(ready, self._sent, strict=True))

    def next(self, ready: Sequence[int]) -> Rectangle | None:
        """The next segment, given for each layer the tokens [0, ready) that are computed; None when all is sent."""
        waiting = [index for index, sent in enumerate(self._sent) if sent < ready[index]]
        if not waiting:
            return None
        first = min(waiting, key=lambda index: (self._sent[index], index))
        start, stop = self._sent[first], ready[first]
        if stop > start + self._max_area:
            cut = start + self._max_area
            whole = cut - cut % self._block_size
            stop = whole if whole > start else cut
        end = first + 1
        while (
            end < len(self._sent)
            and self._sent[end] == start
            and ready[end] >= stop
            and (end + 1 - first) * (stop - start) <= self._max_area
        ):
            end += 1
        self._sent[first:end] = [stop] * (end - first)
        return Rectangle(Interval(self._first_layer + first, self._first_layer + end), Interval(start, stop))


class Coverage:
    """Which (layer, token) pairs have arrived. Exact: nothing outside, nothing twice, complete only when whole."""

    def __init__(self, layers: Interval, tokens: Interval) -> None:
        self._whole = Rectangle(layers, tokens)
        self._runs: list[list[Interval]] = [[] for _ in range(len(layers))]
        self._missing = self._whole.area

    @property
    def is_complete(self) -> bool:
        """Whether every token of every layer has arrived."""
        return self._missing == 0

    def add(self, part: Rectangle) -> str | None:
        """Count `part` as arrived, or say (for a person) why it cannot be; then nothing is changed."""
        if part.area == 0:
            return f"{part!r} is empty"
        if not (self._whole.layers.contains(part.layers) and self._whole.tokens.contains(part.tokens)):
            return f"{part!r} lies outside {self._whole!r}"
        first = part.layers.start - self._whole.layers.start
        rows = self._runs[first : first + len(part.layers)]
        if any(_overlaps(runs, part.tokens) for runs in rows):
            return f"{part!r} overlaps what has arrived already"
        for runs in rows:
            _insert(runs, part.tokens)
        self._missing -= part.area
        return None


def _overlaps(runs: list[Interval], tokens: Interval) -> bool:
    after = bisect_right(runs, tokens.start, key=lambda run: run.start)
    return (after > 0 and runs[after - 1].stop > tokens.start) or (
        after < len(runs) and runs[after].start < tokens.stop
    )


def _insert(runs: list[Interval], tokens: Interval) -> None:
    """Add `tokens`, disjoint from every run, and merge it with the neighbours it touches."""
    at = bisect_right(runs, tokens.start, key=lambda run: run.start)
    first, last = at, at
    start, stop = tokens.start, tokens.stop
    if at > 0 and runs[at - 1].stop == start:
        first, start = at - 1, runs[at - 1].start
    if at < len(runs) and runs[at].start == stop:
        last, stop = at + 1, runs[at].stop
    runs[first:last] = [Interval(start, stop)]
