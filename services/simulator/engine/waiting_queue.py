"""The sequences that wait for blocks, in order of arrival."""

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice

from services.simulator.engine.records import SimulatedSequence


class WaitingQueue:
    """Those that were preempted, then those that were never admitted.

    Whoever is admitted takes all before it along, so each of the first kind arrived before each of the second.
    """

    def __init__(self) -> None:
        self.tokens = 0
        """Known tokens of those with more than one."""
        self._returned: list[SimulatedSequence] = []
        self._new: OrderedDict[int, SimulatedSequence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._returned) + len(self._new)

    def push(self, sequence: SimulatedSequence) -> None:
        """A sequence that arrived after all others."""
        self._new[sequence.order] = sequence
        self._count(sequence, 1)

    def put_back(self, sequence: SimulatedSequence) -> None:
        """A sequence that was preempted."""
        insort(self._returned, sequence, key=lambda other: other.order)
        self._count(sequence, 1)

    def discard(self, sequence: SimulatedSequence) -> None:
        """Take one out of the middle."""
        if self._new.pop(sequence.order, None) is None:
            self._returned.remove(sequence)
        self._count(sequence, -1)

    def known(self) -> Iterator[int]:
        """Known tokens of each, the oldest first; nothing may change while it is read."""
        return (sequence.known for sequence in chain(self._returned, self._new.values()))

    def take(self, count: int) -> list[SimulatedSequence]:
        """The `count` oldest, which then wait no more."""
        taken = list(islice(chain(self._returned, self._new.values()), count))
        for sequence in taken[len(self._returned) :]:
            del self._new[sequence.order]
        del self._returned[:count]
        for sequence in taken:
            self._count(sequence, -1)
        return taken

    def _count(self, sequence: SimulatedSequence, sign: int) -> None:
        if sequence.known > 1:
            self.tokens += sign * sequence.known
