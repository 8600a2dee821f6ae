"""What both ends of a link have: messages, as frames on the Unix socket."""

import asyncio
from collections.abc import Sequence

from transfer.backends.base import Link
from transfer.backends.shm.stream import FdStream
from transfer.errors import Corrupt, PeerLost
from transfer.frames import HEADER_BYTES, FrameHeader, FrameKind, check_payload, decode_header, encode_message


class MessageLink(Link):
    """Owns the stream. A frame that was begun and not finished makes it useless: `_is_torn`."""

    def __init__(self, stream: FdStream) -> None:
        self._stream = stream
        self._received = bytearray()
        self._heard = 0
        self._sending = asyncio.Lock()
        self._is_torn = False
        self._is_broken = False
        """The peer is gone, or what it says cannot be trusted."""

    @property
    def bytes_heard(self) -> int:
        """Of messages; nobody tells of bytes in the zones."""
        return self._heard

    def _outgoing_fds(self) -> Sequence[int]:
        """Descriptors that go with the next message."""
        return ()

    def _fds_arrived(self, fds: Sequence[int]) -> None:
        """Called with descriptors that are this link's own now, all of them."""
        raise NotImplementedError

    async def send(self, message: bytes) -> None:
        """See Link.send."""
        # Taken before any wait: "the next message" is the next for which this is called.
        frame, fds = encode_message(message), self._outgoing_fds()
        async with self._sending:
            if self._is_torn:
                raise PeerLost("the connection is closed, or broke off within a frame that this side was sending")
            self._is_torn = True
            await self._stream.send(frame, fds)
            self._is_torn = False

    async def receive(self) -> bytes:
        """See Link.receive. Cancelled, it has lost nothing."""
        try:
            while (message := self._next_message()) is None:
                data, fds = await self._stream.receive()
                self._heard += len(data)
                self._received += data
                if fds:
                    self._fds_arrived(fds)
        except (PeerLost, Corrupt):
            self._is_broken = True
            raise
        return message

    def _next_message(self) -> bytes | None:
        if len(self._received) < HEADER_BYTES:
            return None
        header = decode_header(self._received[:HEADER_BYTES])
        if header.kind is not FrameKind.MESSAGE or header.mark:
            raise Corrupt(f"a {header.kind.name} frame with mark {header.mark!r}; here are only messages, with mark 0")
        return self._take(header)

    def _take(self, header: FrameHeader) -> bytes | None:
        stop = HEADER_BYTES + header.length
        if len(self._received) < stop:
            return None
        message = bytes(self._received[HEADER_BYTES:stop])
        del self._received[:stop]
        check_payload(header, message)
        return message

    async def close(self) -> None:
        """See Link.close."""
        self._is_torn = True
        self._stream.close()
