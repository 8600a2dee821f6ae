import struct

import pytest
import xxhash
from hypothesis import assume, given
from hypothesis import strategies as st

from transfer.errors import Corrupt
from transfer.frames import (
    FRAME_VERSION,
    HEADER_BYTES,
    MAGIC,
    MAX_MESSAGE_FRAME,
    TOKEN_BYTES,
    FrameKind,
    check_payload,
    decode_header,
    encode_hello,
    encode_invite,
    encode_join,
    encode_message,
    encode_segment_header,
)


@given(st.binary(max_size=300))
def test_a_message_comes_back(message: bytes) -> None:
    frame = encode_message(message)
    header = decode_header(frame)
    assert (header.kind, header.length) == (FrameKind.MESSAGE, len(message))
    check_payload(header, frame[HEADER_BYTES:])


@given(st.binary(min_size=1, max_size=60), st.data())
def test_no_flipped_bit_goes_unnoticed(message: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode_message(message))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        check_payload(decode_header(frame), frame[HEADER_BYTES:])


U32 = st.integers(0, (1 << 32) - 1)


@given(st.integers(0, 65_535), U32, U32, st.integers(0, 8 * HEADER_BYTES - 1))
def test_a_segments_header_is_checked(zone: int, length: int, offset: int, bit: int) -> None:
    data = bytearray(encode_segment_header(zone, length, offset))
    header = decode_header(data)
    assert (header.kind, header.zone, header.length, header.mark) == (FrameKind.SEGMENT, zone, length, offset)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        check_payload(decode_header(data), b"")


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_noise_is_corrupt(noise: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_header(noise)


def test_messages_are_bounded() -> None:
    with pytest.raises(ValueError, match="limit"):
        encode_message(bytes(MAX_MESSAGE_FRAME + 1))


@given(st.binary(max_size=300), U32)
def test_a_message_says_what_must_have_landed(message: bytes, mark: int) -> None:
    assert decode_header(encode_message(message, mark)).mark == mark


@given(st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES), st.integers(0, 65_535), U32, st.data())
def test_a_join_is_checked(token: bytes, index: int, count: int, data: st.DataObject) -> None:
    frame = bytearray(encode_join(token, index, count))
    header = decode_header(frame)
    assert (header.kind, header.zone, header.mark) == (FrameKind.JOIN, index, count)
    check_payload(header, frame[HEADER_BYTES:])
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Corrupt):
        check_payload(decode_header(frame), frame[HEADER_BYTES:])


@given(st.sampled_from([FrameKind.HELLO, FrameKind.INVITE, FrameKind.JOIN, FrameKind.MESSAGE]), U32)
def test_lengths_are_bounded_before_anything_is_allocated(kind: FrameKind, length: int) -> None:
    right = {FrameKind.HELLO: 0, FrameKind.INVITE: TOKEN_BYTES, FrameKind.JOIN: TOKEN_BYTES}.get(kind)
    assume(length > MAX_MESSAGE_FRAME if right is None else length != right)
    fields = struct.pack("!4sBBHII", MAGIC, FRAME_VERSION, kind, 0, length, 0)
    with pytest.raises(Corrupt, match="limit"):
        decode_header(fields + xxhash.xxh3_64_digest(fields))


def test_greetings() -> None:
    assert decode_header(encode_hello()).kind is FrameKind.HELLO
    assert decode_header(encode_invite(bytes(TOKEN_BYTES))).kind is FrameKind.INVITE
