"""P's side of an accepted hand-off: which segment goes next into which zone, and what D's messages mean."""

from collections import deque
from collections.abc import Sequence
from typing import Final, assert_never

import msgspec

from common.kv.intervals import Interval
from transfer.errors import Aborted, Corrupt
from transfer.protocol.messages import Abort, Alive, AllLanded, Open, Probe, ToSource, ZonesFreed
from transfer.protocol.negotiation import Agreement
from transfer.rectangles import Rectangle, SegmentSchedule

_SHARE_WORTH_SENDING: Final = 1 / 8
"""Of a whole segment. Each costs a millisecond or two of CPU time, on the machine that computes the next layer: to send
a layer of a short prompt by itself is dearer than to wait for a few more."""


class Segment(msgspec.Struct, frozen=True):
    """One rectangle bound to a landing zone; `length` bytes, with their xxh3_64 where it is known."""

    zone: int
    part: Rectangle
    length: int
    checksum: int | None = None


class Giving:
    """Pure. A zone is free, or holds one segment that D has not freed."""

    def __init__(self, agreement: Agreement, tokens: Interval, zones: int) -> None:
        plan = self._plan = agreement.plan
        self._schedule = SegmentSchedule(
            plan.layers, agreement.segment_bytes // plan.token_bytes_per_layer, plan.source.block_size, tokens.start
        )
        self._worth_sending = max(1, int(agreement.segment_bytes * _SHARE_WORTH_SENDING) // plan.token_bytes_per_layer)
        self._stop = tokens.stop
        self._free = deque(range(zones))
        self._in_use: set[int] = set()
        self._unsent_bytes = plan.payload_bytes(len(tokens))

    def next_segment(self, ready: Sequence[int]) -> Segment | None:
        """The next segment to write, given each layer's computed tokens; None without credit, or while too little is
        new and more will come.
        """
        if not self._free or not self._is_worth_it(ready) or (part := self._schedule.next(ready)) is None:
            return None
        zone = self._free.popleft()
        self._in_use.add(zone)
        length = part.area * self._plan.token_bytes_per_layer
        self._unsent_bytes -= length
        return Segment(zone, part, length)

    def _is_worth_it(self, ready: Sequence[int]) -> bool:
        return min(ready) >= self._stop or self._schedule.waiting(ready) >= self._worth_sending

    def handle(self, message: ToSource) -> bool:
        """Whether D holds everything now; raises Corrupt for a message out of place and Aborted if D gave up."""
        match message:
            case ZonesFreed(zones=zones):
                self._free_zones(zones)
                return False
            case AllLanded():
                if self._unsent_bytes > 0:
                    raise Corrupt(f"the sink claims to hold everything; {self._unsent_bytes} bytes were never sent")
                return True
            case Abort(reason=reason):
                raise Aborted(f"the sink gave up: {reason}")
            case Alive():
                return False
            case Open() | Probe():
                raise Corrupt("the sink opened the hand-off a second time")
            case _:
                assert_never(message)

    def _free_zones(self, zones: tuple[int, ...]) -> None:
        for zone in zones:
            if zone not in self._in_use:
                raise Corrupt(f"the sink freed zone {zone!r}, which holds no segment; {sorted(self._in_use)!r} do")
            self._in_use.remove(zone)
            self._free.append(zone)
