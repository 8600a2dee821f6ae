"""Bytes ⇄ messages. One frame is the MessagePack array [wire version, tagged map]."""

from typing import Generic, TypeVar

import msgspec

from common.errors import MalformedMessage

M = TypeVar("M")


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    body: msgspec.Raw


class Codec(Generic[M]):
    """Encodes and decodes the messages of one closed union.

    `decode` raises MalformedMessage, and nothing else, for any bytes that are not a message of a version spoken.
    """

    def __init__(self, union: type[M], version: int, *, max_bytes: int = 64 << 20) -> None:
        self._version = version
        self._max_bytes = max_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._frame_decoder = msgspec.msgpack.Decoder(_Frame)
        self._body_decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)

    def encode(self, message: M) -> bytes:
        """The frame of `message`."""
        return self._encoder.encode((self._version, message))

    def decode(self, data: bytes | memoryview) -> M:
        """The message in `data`; raises MalformedMessage."""
        if len(data) > self._max_bytes:
            raise MalformedMessage(f"a frame of {len(data)} bytes; the limit is {self._max_bytes}")
        try:
            frame = self._frame_decoder.decode(data)
            if frame.version != self._version:
                raise MalformedMessage(f"wire version {frame.version}; this side speaks {self._version}")
            return self._body_decoder.decode(frame.body)
        except MalformedMessage:
            raise
        except Exception as error:  # also what the __post_init__ of a message raises, whatever that is
            raise MalformedMessage(f"not a message: {error}") from error
