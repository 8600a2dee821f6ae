"""Who may join whom: tokens of control connections that expect data connections."""

import hmac
import secrets
from collections.abc import Callable

from transfer.backends.tcp.stream import Stream
from transfer.errors import Corrupt
from transfer.frames import TOKEN_BYTES

_NAME_BYTES = 8
"""The first bytes of a token name the invitation; the rest is its secret."""

Join = Callable[[Stream, int, int], None]
"""Takes a stream over, with its index and the number of streams; raises Corrupt, and then the stream is not taken."""


class Invitations:
    """Those of one listener."""

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[bytes, Join]] = {}

    def issue(self, join: Join) -> bytes:
        """A new token."""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._open[token[:_NAME_BYTES]] = (token, join)
        return token

    def revoke(self, token: bytes) -> None:
        """It is good for nothing any more. Idempotent."""
        self._open.pop(token[:_NAME_BYTES], None)

    def redeem(self, token: bytes) -> Join:
        """Whom the bearer of `token` may join; raises Corrupt."""
        issued = self._open.get(token[:_NAME_BYTES])
        if issued is None or not hmac.compare_digest(issued[0], token):
            raise Corrupt("a data connection with a token that is not, or not any more, good")
        return issued[1]
