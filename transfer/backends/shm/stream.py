"""A connected Unix socket: bytes in order, and descriptors that come with some of them."""

import array
import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence

from transfer.errors import Corrupt, PeerLost

MAX_FDS = 253
"""The kernel passes so many with one call."""

_RECEIVE_BYTES = 128 << 10
_FD_BYTES = array.array("i").itemsize
_CREDENTIALS = struct.Struct("3i")


class FdStream:
    """Owns a non-blocking socket. `send` by one task at a time, and `receive` by one.

    Cancelled, `receive` has taken nothing; `send` may have sent a part.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_closed = False

    @property
    def peer_uid(self) -> int:
        """The user of the process that connected or listened, as the kernel knows it."""
        data = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(data)
        return int(uid)

    async def receive(self) -> tuple[bytes, list[int]]:
        """Some bytes and the descriptors that came with the last of them, which are the caller's.

        Raises PeerLost at the end of the stream, and Corrupt for more descriptors than can be taken.
        """
        while (received := self._try_receive()) is None:
            await self._ready(self._loop.add_reader, self._loop.remove_reader)
        data, fds = received
        if not data:
            _close_all(fds)
            raise PeerLost("the connection was closed by the other side")
        return data, fds

    def _try_receive(self) -> tuple[bytes, list[int]] | None:
        space = socket.CMSG_SPACE(MAX_FDS * _FD_BYTES)
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(_RECEIVE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerLost(f"the connection broke: {error}") from error
        fds = [fd for level, kind, content in ancillary for fd in _descriptors(level, kind, content)]
        if flags & socket.MSG_CTRUNC:
            _close_all(fds)
            raise Corrupt("descriptors came that this process cannot take: too many at once, or too many are open here")
        return data, fds

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send all of `data`, and `fds` with its first byte; they stay the caller's. Raises PeerLost."""
        rest = memoryview(data)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while rest:
            try:
                sent = self._sock.sendmsg([rest], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
                continue
            except OSError as error:
                raise PeerLost(f"the connection broke while sending: {error}") from error
            rest, ancillary = rest[sent:], []

    async def _ready(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        fd = self._sock.fileno()
        add(fd, _resolve, future)
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if not self._is_closed:
                remove(fd)

    def close(self) -> None:
        """Who waits gets PeerLost. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for future in self._waiting:
            if not future.done():
                future.set_exception(PeerLost("the connection was closed by this side"))
        self._sock.close()


def _descriptors(level: int, kind: int, content: bytes) -> list[int]:
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return []
    return array.array("i", content[: len(content) // _FD_BYTES * _FD_BYTES]).tolist()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
