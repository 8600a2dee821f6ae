"""Half-open intervals of layers, heads and tokens."""

from typing import Final

import msgspec

LARGEST: Final = 1 << 40
"""No layer, head or token has such a number. `len` fails beyond a machine word, and intervals come from peers."""


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """The integers in [start, stop), below `LARGEST`; empty when start == stop."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= LARGEST:
            raise ValueError(f"not an interval: [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, index: int) -> bool:
        return self.start <= index < self.stop

    def intersect(self, other: "Interval") -> "Interval":
        """What both hold; empty (at the later start) when they are disjoint."""
        start = max(self.start, other.start)
        return Interval(start, max(start, min(self.stop, other.stop)))

    def contains(self, other: "Interval") -> bool:
        """Whether every element of `other` is in this one."""
        return len(other) == 0 or (self.start <= other.start and other.stop <= self.stop)
