"""The requests that wait for a place, in two lines."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from common.ids import RequestId
from services.scheduling.lifecycle.events import Arrived


@dataclass(slots=True)
class Line:
    """Requests of one kind, first in, first out. Only `WaitingLines` changes who is in it."""

    arrivals: OrderedDict[RequestId, tuple[int, Arrived]] = field(default_factory=OrderedDict)
    waits_for: str = "its turn"
    """What its head lacked when it was last refused a place."""

    def head(self) -> Arrived:
        """The request that has waited longest; the line is not empty."""
        return next(iter(self.arrivals.values()))[1]

    def head_number(self) -> int:
        """The head's number in the order of arrival over both lines."""
        return next(iter(self.arrivals.values()))[0]


class WaitingLines:
    """One line for requests that need a prefill instance, one for those that need none; O(1) to join and leave."""

    def __init__(self) -> None:
        self._lines = {True: Line(), False: Line()}
        self._next_number = 0

    def __len__(self) -> int:
        return sum(len(line.arrivals) for line in self._lines.values())

    def __contains__(self, request: RequestId) -> bool:
        return any(request in line.arrivals for line in self._lines.values())

    def __iter__(self) -> Iterator[tuple[Line, Arrived]]:
        """Everyone who waits, with the line; over a copy, so that the loop may take them out."""
        everyone = [(line, arrived) for line in self._lines.values() for _, arrived in line.arrivals.values()]
        return iter(everyone)

    def join(self, arrived: Arrived, *, needs_prefill: bool) -> Line:
        """Put a request at the end of its line."""
        line = self._lines[needs_prefill]
        line.arrivals[arrived.spec.request] = (self._next_number, arrived)
        self._next_number += 1
        return line

    def leave(self, request: RequestId) -> bool:
        """Take a request out, wherever it stands; returns whether it waited."""
        return any(line.arrivals.pop(request, None) is not None for line in self._lines.values())

    def occupied(self) -> list[Line]:
        """The lines with someone in them, that of the older head first."""
        return sorted((line for line in self._lines.values() if line.arrivals), key=Line.head_number)
