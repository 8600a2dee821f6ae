"""Frames of a byte stream: a fixed header that is checked before anything else, then the payload.

  magic 4s | wire version u8 | kind u8 | zone u16 | length u32 | mark u32 | xxh3_64 u64   (network byte order, 24 bytes)

The checksum of a SEGMENT or HELLO frame covers the header's other fields: the checksum of the segment travels in its
SegmentWritten message and is verified off the event loop. That of every other frame covers the payload too.
"""

import struct
from enum import IntEnum

import msgspec
import xxhash

from transfer.errors import Corrupt

MAGIC = b"PDKV"
FRAME_VERSION = 2
MAX_MESSAGE_FRAME = 64 << 10
TOKEN_BYTES = 40
"""Length of what an INVITE hands out and a JOIN shows."""

_FIELDS = struct.Struct("!4sBBHII")
_CHECKSUM = struct.Struct("!Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size


class FrameKind(IntEnum):
    """What a frame carries, and what its `zone` and `mark` mean (0 where nothing is said)."""

    MESSAGE = 1
    """`mark`: the striped segments that must have landed before it is handed out."""
    SEGMENT = 2
    """Bytes for `zone`, from its byte number `mark` on."""
    HELLO = 3
    """First of a control connection; empty."""
    INVITE = 4
    """From the source: a token with which data connections may join this control connection."""
    JOIN = 5
    """First of a data connection: its token. It is number `zone` of `mark` connections."""


_LENGTHS = {
    FrameKind.MESSAGE: range(MAX_MESSAGE_FRAME + 1),
    FrameKind.SEGMENT: range(1 << 32),
    FrameKind.HELLO: range(1),
    FrameKind.INVITE: range(TOKEN_BYTES, TOKEN_BYTES + 1),
    FrameKind.JOIN: range(TOKEN_BYTES, TOKEN_BYTES + 1),
}
_HEADER_ONLY = (FrameKind.SEGMENT, FrameKind.HELLO)


class FrameHeader(msgspec.Struct, frozen=True):
    """A header whose magic, version and kind are right and whose length is within bounds."""

    kind: FrameKind
    zone: int
    length: int
    mark: int
    fields: bytes
    checksum: int


def encode_message(message: bytes, mark: int = 0) -> bytes:
    """Header and payload of a MESSAGE frame."""
    if len(message) > MAX_MESSAGE_FRAME:
        raise ValueError(f"a message of {len(message)} bytes; the limit is {MAX_MESSAGE_FRAME}")
    return _encode(FrameKind.MESSAGE, message, mark=mark)


def encode_segment_header(zone: int, length: int, offset: int = 0) -> bytes:
    """Header of a SEGMENT frame; its `length` bytes of payload follow."""
    return _header(FrameKind.SEGMENT, zone, length, offset, b"")


def encode_hello() -> bytes:
    """A HELLO frame."""
    return _encode(FrameKind.HELLO, b"")


def encode_invite(token: bytes) -> bytes:
    """An INVITE frame."""
    return _encode(FrameKind.INVITE, token)


def encode_join(token: bytes, index: int, count: int) -> bytes:
    """A JOIN frame."""
    return _encode(FrameKind.JOIN, token, zone=index, mark=count)


def decode_header(data: bytes | bytearray) -> FrameHeader:
    """The header in `data` (HEADER_BYTES of it); raises Corrupt. Nothing is allocated by what a peer claims."""
    fields = bytes(data[: _FIELDS.size])
    magic, version, number, zone, length, mark = _FIELDS.unpack(fields)
    (checksum,) = _CHECKSUM.unpack(data[_FIELDS.size : HEADER_BYTES])
    if magic != MAGIC:
        raise Corrupt(f"a frame must begin with {MAGIC!r}, not {magic!r}: not a peer of ours, or a damaged stream")
    if version != FRAME_VERSION:
        raise Corrupt(f"frame version {version!r}; this side speaks {FRAME_VERSION}: run one release everywhere")
    try:
        kind = FrameKind(number)
    except ValueError:
        raise Corrupt(f"frame kind {number!r}; there are {[int(known) for known in FrameKind]!r}") from None
    if length not in _LENGTHS[kind]:
        raise Corrupt(f"a {kind.name} frame of {length} bytes; the limit is {_LENGTHS[kind][-1]}")
    if kind in _HEADER_ONLY and _digest(fields, b"") != checksum:
        raise Corrupt(f"the checksum of a {kind.name} header is wrong (zone {zone!r}, {length} bytes)")
    return FrameHeader(kind, zone, length, mark, fields, checksum)


def check_payload(header: FrameHeader, payload: bytes | bytearray) -> None:
    """Raises Corrupt unless `payload` is the one that `header`, of a kind whose checksum covers it, announced."""
    if _digest(header.fields, payload) != header.checksum:
        raise Corrupt(f"the checksum of a {header.kind.name} of {header.length} bytes is wrong")


def _encode(kind: FrameKind, payload: bytes, zone: int = 0, mark: int = 0) -> bytes:
    return _header(kind, zone, len(payload), mark, payload) + payload


def _header(kind: FrameKind, zone: int, length: int, mark: int, covered: bytes) -> bytes:
    fields = _FIELDS.pack(MAGIC, FRAME_VERSION, kind, zone, length, mark)
    return fields + _CHECKSUM.pack(_digest(fields, covered))


def _digest(fields: bytes, payload: bytes | bytearray) -> int:
    digest = xxhash.xxh3_64(fields)
    digest.update(payload)
    return digest.intdigest()
