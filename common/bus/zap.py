"""Who may connect: answers to ZeroMQ's questions (ZAP, RFC 27). Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from zmq.utils import z85

from common.bus.keys import PublicKey
from common.ids import InstanceId

ENDPOINT: Final = "inproc://zeromq.zap.01"
"""Where ZeroMQ asks, within a context."""

_VERSION: Final = b"1.0"
_KEY_BYTES: Final = 32


class Answer(msgspec.Struct, frozen=True):
    """What to send back, and to whom it said no."""

    frames: tuple[bytes, ...]
    refused: tuple[str, str] | None = None
    """Who may not connect, and why, for the log; None: it may."""


def answer(request: Sequence[bytes], allowed: Mapping[PublicKey, InstanceId]) -> Answer:
    """Let the holder of an allowed key connect; its messages then carry that key as their user id.

    `request`: version, request id, domain, address, identity, mechanism, credentials.  Every request has an answer.
    """
    # Asked is about one of: an instance, a stranger, a connection without a key; or the question is not a known one.
    match request:
        case [b"1.0", number, _, address, _, b"CURVE", bytes(raw)] if len(raw) == _KEY_BYTES:
            key = z85.encode(raw)
            if key in allowed:
                return Answer((_VERSION, number, b"200", b"OK", key, b""))
            return _refusal(number, address, f"the key {key.decode()} is of no instance that may join")
        case [b"1.0", number, _, address, _, mechanism, *_]:
            return _refusal(number, address, f"it shows no key but {mechanism[:16]!r}")
        case _:
            number = request[1] if len(request) > 1 else b""
            frames = (_VERSION, number, b"500", b"not understood", b"", b"")
            return Answer(frames, ("a connection", "ZeroMQ asks in a way that is not known here"))


def _refusal(number: bytes, address: bytes, reason: str) -> Answer:
    who = f"a connection from {address.decode(errors='replace')}"
    return Answer((_VERSION, number, b"400", b"not allowed", b"", b""), (who, reason))
