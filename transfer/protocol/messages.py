"""The messages of a hand-off: two closed unions, one for each direction.

    D → P   Open, then ZonesFreed …, then AllLanded
    P → D   Accepted or Refusal, then SegmentWritten …
    both    Alive whenever nothing else is said for a while, Abort to give up

A segment's bytes do not travel in messages: a backend places them in a landing zone before SegmentWritten arrives.
"""

from typing import Annotated

import msgspec

from common.kv.intervals import Interval
from common.kv.layout import KVLayout
from common.kv.ticket import Ticket
from common.messages.codec import Codec
from transfer.errors import RefusalReason

WIRE_VERSION = 1
"""Version of these messages. Raise it when a change cannot be read by the other side."""

MAX_MESSAGE_BYTES = 64 << 10
MAX_ZONES = 1024

_Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Zone = Annotated[int, msgspec.Meta(ge=0, lt=MAX_ZONES)]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class Open(_Message, frozen=True):
    """D asks for the KV of tokens [0, num_tokens) in its layout."""

    wire_version: int
    ticket: Ticket
    layout: KVLayout
    num_tokens: _Positive
    zones: Annotated[int, msgspec.Meta(ge=1, le=MAX_ZONES)]
    """Landing zones, all free: the credit."""
    segment_bytes: _Positive
    """Size of one landing zone."""
    descriptor: bytes
    """Where the zones are, in the backend's own words."""
    checksum: bool
    patience_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    """How long D will wait for the ticket to become known."""


class ZonesFreed(_Message, frozen=True):
    """These zones are unpacked and may be written again."""

    zones: tuple[_Zone, ...]


class AllLanded(_Message, frozen=True):
    """Every token of every layer is in D's blocks: P may free its own."""


class Accepted(_Message, frozen=True):
    """P serves this taker, from this layout; both sides derive the same plan from the two layouts."""

    layout: KVLayout


class Refusal(_Message, frozen=True):
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


class Alive(_Message, frozen=True):
    """Nothing to say, but still here."""


class Abort(_Message, frozen=True):
    """The hand-off is over for the sender."""

    reason: str


ToSource = Open | ZonesFreed | AllLanded | Alive | Abort
ToSink = Accepted | Refusal | SegmentWritten | Alive | Abort


def source_codec() -> Codec[ToSource]:
    """Messages from D to P."""
    return Codec(ToSource, WIRE_VERSION, max_bytes=MAX_MESSAGE_BYTES)  # type: ignore[arg-type]


def sink_codec() -> Codec[ToSink]:
    """Messages from P to D."""
    return Codec(ToSink, WIRE_VERSION, max_bytes=MAX_MESSAGE_BYTES)  # type: ignore[arg-type]
