"""The messages of a hand-off: two closed unions, one for each direction.

    D → P   Open, then ZonesFreed …, then AllLanded
    P → D   Accepted or Refusal, then SegmentWritten …
    both    Alive whenever nothing else is said for a while, Abort to give up

A self-test of the link looks the same, with Probe, ProbeAccepted and ProbeWritten in place of the first two and the
segments; it moves bytes that mean nothing.

A segment's bytes do not travel in messages: a backend places them in a landing zone before SegmentWritten arrives.
Open, Accepted and Refusal are read by every version, so that two that do not understand each other can say so: they
may get new fields with a default, and an older reader skips these.
"""

from typing import Annotated

import msgspec

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout
from common.kv.ticket import Ticket
from common.messages.codec import Codec
from transfer.errors import RefusalReason
from transfer.plan import Region
from transfer.protocol.versions import VersionRange

FRAME_VERSION = 1
"""Of the frame around every message; it never changes."""

SPOKEN = VersionRange(2, 2)
"""Versions of these messages that this release speaks. Raise `newest` when a change cannot be read by the other side,
and `oldest` when a release stops speaking an old one."""

MAX_MESSAGE_BYTES = 64 << 10
MAX_ZONES = 1024
MAX_PROBE_SEGMENTS = 256

_Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Zone = Annotated[int, msgspec.Meta(ge=0, lt=MAX_ZONES)]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class _Opening(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Unknown fields are skipped."""


class Capabilities(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one side can do, as it says itself."""

    versions: VersionRange
    layout: KVLayout
    dtypes: tuple[KVDType, ...]
    """Element types that it can convert its own to and from."""
    max_segment_bytes: _Positive


class Open(_Opening, frozen=True):
    """D asks for the KV of tokens [first_token, num_tokens) of `region`; those before it holds already."""

    capabilities: Capabilities
    ticket: Ticket
    region: Region
    num_tokens: _Positive
    zones: Annotated[int, msgspec.Meta(ge=1, le=MAX_ZONES)]
    """Landing zones, all free: the credit."""
    descriptor: bytes
    """Where the zones are, in the backend's own words."""
    checksum: bool
    patience_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    """How long D will wait for the ticket to become known."""
    first_token: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0


class ZonesFreed(_Message, frozen=True):
    """These zones are unpacked and may be written again."""

    zones: tuple[_Zone, ...]


class AllLanded(_Message, frozen=True):
    """Every token of every layer is in D's blocks: P may free its own."""


class Accepted(_Opening, frozen=True):
    """P serves this taker. Both sides derive the same agreement from the two capabilities; here it is said too, so
    that a difference shows."""

    capabilities: Capabilities
    version: int
    """Of every message that follows."""
    segment_bytes: _Positive
    """The largest segment that P will write."""
    wire_dtype: KVDType
    """Elements on the wire; who has another type at home converts."""


class Refusal(_Opening, frozen=True):
    """P does not serve this taker."""

    reason: RefusalReason
    message: str
    field: str | None = None


class SegmentWritten(_Message, frozen=True):
    """The first `length` bytes of `zone` hold the KV of these layers and tokens."""

    zone: _Zone
    layers: Interval
    tokens: Interval
    length: _Positive
    checksum: Annotated[int, msgspec.Meta(ge=0)] | None
    """xxh3_64 of those bytes; None when D did not ask."""


class Probe(_Message, frozen=True):
    """D measures the link: write `segments` segments of `segment_bytes` of anything, as credit allows."""

    zones: Annotated[int, msgspec.Meta(ge=1, le=MAX_ZONES)]
    segment_bytes: _Positive
    segments: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROBE_SEGMENTS)]
    descriptor: bytes


class ProbeAccepted(_Message, frozen=True):
    """P has heard the Probe (a round trip) and will write segments of so many bytes."""

    segment_bytes: _Positive


class ProbeWritten(_Message, frozen=True):
    """A segment of a self-test is in `zone`."""

    zone: _Zone


class Alive(_Message, frozen=True):
    """Nothing to say, but still here."""


class Abort(_Message, frozen=True):
    """The hand-off is over for the sender."""

    reason: str


ToSource = Open | Probe | ZonesFreed | AllLanded | Alive | Abort
ToSink = Accepted | Refusal | ProbeAccepted | SegmentWritten | ProbeWritten | Alive | Abort


def source_codec() -> Codec[ToSource]:
    """Messages from D to P."""
    return Codec(ToSource, FRAME_VERSION, max_bytes=MAX_MESSAGE_BYTES)  # type: ignore[arg-type]


def sink_codec() -> Codec[ToSink]:
    """Messages from P to D."""
    return Codec(ToSink, FRAME_VERSION, max_bytes=MAX_MESSAGE_BYTES)  # type: ignore[arg-type]
