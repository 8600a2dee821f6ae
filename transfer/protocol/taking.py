"""D's side of a hand-off: what P's messages mean, and when everything is there."""

from typing import assert_never

from common.kv.layout import KVLayout
from transfer.errors import Aborted, Corrupt, LayoutMismatch, Refused
from transfer.plan import CopyPlan, plan_copy
from transfer.protocol.giving import Segment
from transfer.protocol.messages import Abort, Accepted, Alive, Refusal, SegmentWritten, ToSink
from transfer.rectangles import Coverage, Rectangle


class Taking:
    """Pure. Admits each segment once, into a zone that P may write, and knows when coverage is complete."""

    def __init__(self, layout: KVLayout, num_tokens: int, zones: int, segment_bytes: int, *, checksum: bool) -> None:
        self._layout = layout
        self._num_tokens = num_tokens
        self._granted = set(range(zones))
        self._segment_bytes = segment_bytes
        self._checksum = checksum
        self._plan: CopyPlan | None = None
        self._coverage = Coverage(layout.layers, num_tokens)
        self._unpacked_bytes = 0

    @property
    def plan(self) -> CopyPlan:
        """The plan that both sides follow; there is none before P has accepted (then Corrupt is raised)."""
        if self._plan is None:
            raise Corrupt("the source wrote a segment before it accepted the hand-off")
        return self._plan

    @property
    def is_complete(self) -> bool:
        """Whether everything has arrived and is unpacked."""
        return self._coverage.is_complete and self._unpacked_bytes == self.plan.payload_bytes(self._num_tokens)

    def handle(self, message: ToSink) -> Segment | None:
        """The segment to unpack, if the message brings one; raises Refused, Aborted or Corrupt."""
        match message:
            case Accepted(layout=source):
                self._accept(source)
                return None
            case Refusal(reason=reason, message=text, field=field):
                raise Refused(reason, text, field)
            case SegmentWritten():
                return self._admit(message)
            case Abort(reason=reason):
                raise Aborted(f"the source gave up: {reason}")
            case Alive():
                return None
            case _:
                assert_never(message)

    def unpacked(self, segment: Segment) -> None:
        """The segment is in the blocks; its zone may be written again."""
        self._granted.add(segment.zone)
        self._unpacked_bytes += segment.length

    def _accept(self, source: KVLayout) -> None:
        if self._plan is not None:
            raise Corrupt("the source accepted the hand-off a second time")
        try:
            self._plan = plan_copy(source, self._layout)
        except LayoutMismatch as mismatch:
            raise Corrupt(f"the source accepted a layout that it cannot serve: {mismatch}") from mismatch

    def _admit(self, written: SegmentWritten) -> Segment:
        part = Rectangle(written.layers, written.tokens)
        plan = self.plan
        if written.zone not in self._granted:
            raise Corrupt(f"segment in zone {written.zone!r}, which is not free; {sorted(self._granted)!r} are")
        expected = part.area * plan.token_bytes_per_layer
        if written.length != expected or written.length > self._segment_bytes:
            raise Corrupt(
                f"segment of {written.length} bytes for {part!r}, which has {expected}; "
                f"a zone has {self._segment_bytes}"
            )
        if self._checksum and written.checksum is None:
            raise Corrupt(f"segment {part!r} comes without the checksum that was asked for")
        if (problem := self._coverage.add(part)) is not None:
            raise Corrupt(f"segment {problem}")
        self._granted.remove(written.zone)
        return Segment(written.zone, part, written.length, written.checksum)
