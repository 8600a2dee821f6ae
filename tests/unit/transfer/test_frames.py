import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.errors import Corrupt
from transfer.frames import (
    HEADER_BYTES,
    MAX_MESSAGE_FRAME,
    FrameKind,
    check_message,
    decode_header,
    encode_message,
    encode_segment_header,
)


@given(st.binary(max_size=300))
def test_a_message_comes_back(message: bytes) -> None:
    frame = encode_message(message)
    header = decode_header(frame)
    assert (header.kind, header.length) == (FrameKind.MESSAGE, len(message))
    check_message(header, frame[HEADER_BYTES:])


@given(st.binary(min_size=1, max_size=60), st.data())
def test_no_flipped_bit_goes_unnoticed(message: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode_message(message))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        check_message(decode_header(frame), frame[HEADER_BYTES:])


@given(st.integers(0, 65_535), st.integers(0, (1 << 32) - 1), st.integers(0, 8 * HEADER_BYTES - 1))
def test_a_segments_header_is_checked(zone: int, length: int, bit: int) -> None:
    data = bytearray(encode_segment_header(zone, length))
    header = decode_header(data)
    assert (header.kind, header.zone, header.length) == (FrameKind.SEGMENT, zone, length)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        check_message(decode_header(data), b"")


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_noise_is_corrupt(noise: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_header(noise)


def test_messages_are_bounded() -> None:
    with pytest.raises(ValueError, match="limit"):
        encode_message(bytes(MAX_MESSAGE_FRAME + 1))
