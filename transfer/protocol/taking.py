"""D's side of a hand-off: what P's messages mean, and when everything is there."""

from typing import assert_never

from common.kv.intervals import Interval
from transfer.errors import Aborted, Corrupt, Refused
from transfer.plan import CopyPlan, Region
from transfer.protocol.giving import Segment
from transfer.protocol.messages import (
    Abort,
    Accepted,
    Alive,
    Capabilities,
    ProbeAccepted,
    ProbeWritten,
    Refusal,
    SegmentWritten,
    ToSink,
)
from transfer.protocol.negotiation import Agreement, agree
from transfer.rectangles import Coverage, Rectangle


class Taking:
    """Pure. Admits each segment once, into a zone that P may write, and knows when coverage is complete."""

    def __init__(
        self, capabilities: Capabilities, region: Region, tokens: Interval, zones: int, *, checksum: bool
    ) -> None:
        self._capabilities = capabilities
        self._region = region
        self._num_tokens = len(tokens)
        self._granted = set(range(zones))
        self._checksum = checksum
        self._agreement: Agreement | None = None
        self._coverage = Coverage(region.layers, tokens)
        self._unpacked_bytes = 0

    @property
    def agreement(self) -> Agreement:
        """What both sides follow; there is none before P has accepted (then Corrupt is raised)."""
        if self._agreement is None:
            raise Corrupt("the source wrote a segment before it accepted the hand-off")
        return self._agreement

    @property
    def plan(self) -> CopyPlan:
        """The agreement's."""
        return self.agreement.plan

    @property
    def is_complete(self) -> bool:
        """Whether everything has arrived and is unpacked."""
        return self._coverage.is_complete and self._unpacked_bytes == self.plan.payload_bytes(self._num_tokens)

    def handle(self, message: ToSink) -> Segment | None:
        """The segment to unpack, if the message brings one; raises Refused, Aborted or Corrupt."""
        match message:
            case Accepted():
                self._accept(message)
                return None
            case Refusal(reason=reason, message=text, field=field):
                raise Refused(reason, text, field)
            case SegmentWritten():
                return self._admit(message)
            case Abort(reason=reason):
                raise Aborted(f"the source gave up: {reason}")
            case Alive():
                return None
            case ProbeAccepted() | ProbeWritten():
                raise Corrupt("the source answers a self-test that was not asked for")
            case _:
                assert_never(message)

    def unpacked(self, segment: Segment) -> None:
        """The segment is in the blocks; its zone may be written again."""
        self._granted.add(segment.zone)
        self._unpacked_bytes += segment.length

    def _accept(self, accepted: Accepted) -> None:
        if self._agreement is not None:
            raise Corrupt("the source accepted the hand-off a second time")
        agreement = agree(accepted.capabilities, self._capabilities, self._region)
        if isinstance(agreement, Refusal):
            raise Corrupt(f"the source accepted what it cannot serve: {agreement.message}")
        ours = (agreement.version, agreement.segment_bytes, agreement.plan.wire.dtype)
        theirs = (accepted.version, accepted.segment_bytes, accepted.wire_dtype)
        if ours != theirs:
            raise Corrupt(
                f"the source agreed on (version, segment_bytes, wire_dtype) {theirs!r}; it should be {ours!r}"
            )
        self._agreement = agreement

    def _admit(self, written: SegmentWritten) -> Segment:
        part = Rectangle(written.layers, written.tokens)
        plan, most = self.plan, self.agreement.segment_bytes
        if written.zone not in self._granted:
            raise Corrupt(f"segment in zone {written.zone!r}, which is not free; {sorted(self._granted)!r} are")
        expected = part.area * plan.token_bytes_per_layer
        if written.length != expected or written.length > most:
            raise Corrupt(f"segment of {written.length} bytes for {part!r}, which has {expected}; at most {most}")
        if self._checksum and written.checksum is None:
            raise Corrupt(f"segment {part!r} comes without the checksum that was asked for")
        if (problem := self._coverage.add(part)) is not None:
            raise Corrupt(f"segment {problem}")
        self._granted.remove(written.zone)
        return Segment(written.zone, part, written.length, written.checksum)
