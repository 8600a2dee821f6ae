"""A connected socket as bytes both ways, plain or under TLS: awaited on the event loop, or blocking in a thread."""

import asyncio
import socket
from collections.abc import Sequence

from transfer.backends.tcp.tls import TlsIdentity, TlsSession
from transfer.errors import PeerLost

_RECORDS = 256 << 10
"""Bytes of TLS records read at a time."""
_SEAL = 1 << 20
"""Bytes encrypted at a time: what one connection under TLS takes of memory beyond the caller's."""
_PIECE = 1 << 20
"""Most bytes of one blocking receive, so that progress can be seen from outside."""


_LOCAL_BUFFER = 512 << 10
"""Socket buffers between processes of one machine, where there is no delay to bridge: what is on its way stays in the
processor's cache.  Elsewhere the system sizes them."""


class Stream:
    """Owns a socket. On the event loop; one task sends and one receives at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = 0
        """Bytes received, TLS records as they came."""
        self._sock = sock
        self._tls: TlsSession | None = None

    async def connect(self, address: tuple[str, int]) -> None:
        """Connect the socket; raises PeerLost."""
        try:
            await asyncio.get_running_loop().sock_connect(self._sock, address)
        except OSError as error:
            raise PeerLost(f"cannot connect to {address!r}: {error}") from error

    async def secure(self, identity: TlsIdentity, *, is_server: bool) -> None:
        """Speak TLS from here on. Raises PeerLost when the handshake fails."""
        session = identity.session(is_server=is_server)
        while True:
            is_done, answer = session.shake()
            await self._send_raw(answer)
            if is_done:
                break
            session.feed(await self._receive_raw())
        self._tls = session

    async def fill(self, target: memoryview) -> None:
        """Receive exactly len(target) bytes; raises PeerLost when they do not come."""
        got = 0
        while got < len(target):
            got += await (self._receive_into(target[got:]) if self._tls is None else self._open_into(target[got:]))

    async def send(self, *parts: bytes | memoryview) -> None:
        """Send all; raises PeerLost. Cancelled, it may have sent a part of it."""
        for part in parts:
            if self._tls is None:
                await self._send_raw(part)
            else:
                for start in range(0, len(part), _SEAL):
                    await self._send_raw(self._tls.seal(part[start : start + _SEAL]))

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._sock.close()

    def into_pipe(self) -> "Pipe":
        """The same connection for threads; this object must not be used any more. Raises PeerLost when it is gone."""
        try:
            return self._into_pipe()
        except OSError as error:
            raise PeerLost(f"a data connection broke: {error}") from error

    def _into_pipe(self) -> "Pipe":
        self._sock.setblocking(True)
        if self._sock.getsockname()[0] == self._sock.getpeername()[0]:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                self._sock.setsockopt(socket.SOL_SOCKET, option, _LOCAL_BUFFER)
        return Pipe(self._sock, self._tls)

    async def _open_into(self, target: memoryview) -> int:
        assert self._tls is not None
        while (count := self._tls.open_into(target)) == 0:
            self._tls.feed(await self._receive_raw())
        return count

    async def _receive_into(self, target: memoryview) -> int:
        try:
            count = await asyncio.get_running_loop().sock_recv_into(self._sock, target)
        except OSError as error:
            raise PeerLost(f"the connection broke: {error}") from error
        return self._heard(count)

    async def _receive_raw(self) -> bytes:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, _RECORDS)
        except OSError as error:
            raise PeerLost(f"the connection broke: {error}") from error
        self._heard(len(data))
        return data

    async def _send_raw(self, data: bytes | memoryview) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except OSError as error:
            raise PeerLost(f"the connection broke while sending: {error}") from error

    def _heard(self, count: int) -> int:
        if count == 0:
            raise PeerLost("the connection was closed by the other side")
        self.heard += count
        return count


class Pipe:
    """Owns a socket. Blocking; one thread sends or receives, any thread may `shut`."""

    def __init__(self, sock: socket.socket, tls: TlsSession | None) -> None:
        self.heard = 0
        """Bytes received; grows while a `fill` is under way."""
        self._sock = sock
        self._tls = tls
        self._records = memoryview(bytearray(_RECORDS if tls else 0))

    def fill(self, target: memoryview) -> None:
        """Receive exactly len(target) bytes; raises PeerLost when they do not come."""
        got = 0
        while got < len(target):
            if self._tls is None:
                got += self._receive_into(target[got : got + _PIECE])
            elif (count := self._tls.open_into(target[got:])) == 0:
                self._tls.feed(self._records[: self._receive_into(self._records)])
            else:
                got += count

    def send(self, data: bytes | memoryview) -> None:
        """Send all; raises PeerLost."""
        try:
            if self._tls is None:
                self._sock.sendall(data)
            else:
                for start in range(0, len(data), _SEAL):
                    self._sock.sendall(self._tls.seal(data[start : start + _SEAL]))
        except OSError as error:
            raise PeerLost(f"a data connection broke while sending: {error}") from error

    def shut(self) -> None:
        """End whatever blocks in this pipe, and whatever would. Idempotent."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is not connected any more

    def close(self) -> None:
        """Close the socket; nobody uses the pipe any more."""
        self._sock.close()

    def _receive_into(self, target: memoryview) -> int:
        try:
            count = self._sock.recv_into(target)
        except OSError as error:
            raise PeerLost(f"a data connection broke: {error}") from error
        if count == 0:
            raise PeerLost("a data connection was closed by the other side")
        self.heard += count
        return count


def into_pipes(streams: Sequence[Stream]) -> list[Pipe]:
    """All of them for threads; raises PeerLost when one of them is gone, and then closes all."""
    try:
        return [stream.into_pipe() for stream in streams]
    except PeerLost:
        for stream in streams:
            stream.close()
        raise
