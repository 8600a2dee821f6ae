"""Frames of a byte stream: a fixed header that is checked before anything else, then the payload.

    magic 4s | wire version u8 | kind u8 | zone u16 | length u32 | xxh3_64 u64         (network byte order, 20 bytes)

The checksum of a MESSAGE frame covers the header's other fields and the payload; that of a SEGMENT frame the header
only: the checksum of the segment travels in its SegmentWritten message and is verified off the event loop.
"""

import struct
from enum import IntEnum

import msgspec
import xxhash

from transfer.errors import Corrupt

MAGIC = b"PDKV"
FRAME_VERSION = 1
MAX_MESSAGE_FRAME = 64 << 10

_FIELDS = struct.Struct("!4sBBHI")
_CHECKSUM = struct.Struct("!Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size


class FrameKind(IntEnum):
    """What a frame carries."""

    MESSAGE = 1
    SEGMENT = 2


class FrameHeader(msgspec.Struct, frozen=True):
    """A header whose magic, version and kind are right and whose length is within bounds."""

    kind: FrameKind
    zone: int
    length: int
    fields: bytes
    checksum: int


def encode_message(message: bytes) -> bytes:
    """Header and payload of a MESSAGE frame."""
    if len(message) > MAX_MESSAGE_FRAME:
        raise ValueError(f"a message of {len(message)} bytes; the limit is {MAX_MESSAGE_FRAME}")
    fields = _FIELDS.pack(MAGIC, FRAME_VERSION, FrameKind.MESSAGE, 0, len(message))
    return b"".join((fields, _CHECKSUM.pack(_digest(fields, message)), message))


def encode_segment_header(zone: int, length: int) -> bytes:
    """Header of a SEGMENT frame; its `length` bytes of payload follow."""
    fields = _FIELDS.pack(MAGIC, FRAME_VERSION, FrameKind.SEGMENT, zone, length)
    return fields + _CHECKSUM.pack(_digest(fields, b""))


def decode_header(data: bytes | bytearray) -> FrameHeader:
    """The header in `data` (HEADER_BYTES of it); raises Corrupt. Nothing is allocated by what a peer claims."""
    fields = bytes(data[: _FIELDS.size])
    magic, version, kind, zone, length = _FIELDS.unpack(fields)
    (checksum,) = _CHECKSUM.unpack(data[_FIELDS.size : HEADER_BYTES])
    if magic != MAGIC:
        raise Corrupt(f"a frame must begin with {MAGIC!r}, not {magic!r}: not a peer of ours, or a damaged stream")
    if version != FRAME_VERSION:
        raise Corrupt(f"frame version {version!r}; this side speaks {FRAME_VERSION}: run one release everywhere")
    match kind:
        case FrameKind.MESSAGE:
            if length > MAX_MESSAGE_FRAME:
                raise Corrupt(f"a message of {length} bytes; the limit is {MAX_MESSAGE_FRAME}")
        case FrameKind.SEGMENT:
            if _digest(fields, b"") != checksum:
                raise Corrupt(f"the checksum of a segment's header is wrong (zone {zone!r}, {length} bytes)")
        case _:
            raise Corrupt(f"frame kind {kind!r}; there are {[int(known) for known in FrameKind]!r}")
    return FrameHeader(FrameKind(kind), zone, length, fields, checksum)


def check_message(header: FrameHeader, message: bytes | bytearray) -> None:
    """Raises Corrupt unless `message` is the one that `header` announced."""
    if _digest(header.fields, message) != header.checksum:
        raise Corrupt(f"the checksum of a message of {header.length} bytes is wrong")


def _digest(fields: bytes, payload: bytes | bytearray) -> int:
    digest = xxhash.xxh3_64(fields)
    digest.update(payload)
    return digest.intdigest()
