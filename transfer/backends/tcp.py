"""TCP by the event loop's socket calls: segments are received straight into their landing zones."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from common.tasks import TaskScope
from transfer.backends.base import Backend, Link, Listener
from transfer.errors import Corrupt, PeerLost
from transfer.frames import (
    HEADER_BYTES,
    FrameHeader,
    FrameKind,
    check_message,
    decode_header,
    encode_message,
    encode_segment_header,
)

_log = logging.getLogger(__name__)

_DESCRIPTOR = b"tcp"
_BACKLOG = 128
_ACCEPT_PAUSE_S = 0.1
"""After an accept that failed (too many open files, say), so that the loop is not spun."""


class TcpBackend(Backend):
    """Listens on `host` at a free port; peers are told `advertise` instead where `host` is not reachable as such."""

    scheme = "tcp"

    def __init__(self, host: str = "127.0.0.1", advertise: str | None = None) -> None:
        self._host = host
        self._advertise = advertise or host

    async def listen(self, accept: Callable[[Link], None]) -> Listener:
        """Open a port; raises OSError when the host is not one of this machine's."""
        family, address = await _resolve(self._host, 0)
        sock = socket.create_server((address[0], 0), family=family, backlog=_BACKLOG)
        sock.setblocking(False)
        return _TcpListener(sock, self._advertise, accept)

    async def connect(self, endpoint: str) -> Link:
        """Connect; raises PeerLost when nobody answers and ValueError for something that is not an endpoint."""
        host, port = _parse(endpoint)
        try:
            family, address = await _resolve(host, port)
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise PeerLost(f"cannot resolve {endpoint!r}: {error}") from error
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, address)
            return _TcpLink(sock)
        except OSError as error:
            sock.close()
            raise PeerLost(f"cannot connect to {endpoint!r}: {error}") from error
        except BaseException:
            sock.close()
            raise


class _TcpListener(Listener):
    def __init__(self, sock: socket.socket, host: str, accept: Callable[[Link], None]) -> None:
        self._sock = sock
        self._accept = accept
        bracketed = f"[{host}]" if ":" in host else host
        self._endpoint = f"tcp://{bracketed}:{sock.getsockname()[1]}"
        self._tasks = TaskScope(self._endpoint)
        self._tasks.start(self._run(), "accept")

    @property
    def endpoint(self) -> str:
        return self._endpoint

    async def _run(self) -> None:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
                link = _TcpLink(sock)
            except OSError as error:
                _log.warning("%s could not accept a connection: %s", self._endpoint, error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            self._accept(link)

    async def close(self) -> None:
        await self._tasks.close()
        self._sock.close()


class _TcpLink(Link):
    """One socket, both ways. A frame that was begun and not finished makes the stream useless: `_is_torn`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._header = bytearray(HEADER_BYTES)
        self._zones: tuple[memoryview, ...] = ()
        self._heard = 0
        self._sending = asyncio.Lock()
        self._is_torn = False

    @property
    def bytes_heard(self) -> int:
        return self._heard

    def register(self, zones: Sequence[memoryview]) -> bytes:
        self._zones = tuple(zones)
        return _DESCRIPTOR

    def attach(self, descriptor: bytes) -> None:
        if descriptor != _DESCRIPTOR:
            raise Corrupt(f"not a descriptor of tcp zones: {descriptor[:32]!r}")

    async def write(self, zone: int, data: memoryview) -> None:
        await self._send_whole(encode_segment_header(zone, len(data)), data)

    async def send(self, message: bytes) -> None:
        await self._send_whole(encode_message(message))

    async def _send_whole(self, *parts: bytes | memoryview) -> None:
        async with self._sending:
            if self._is_torn:
                raise PeerLost("the connection broke off within a frame that this side was sending")
            self._is_torn = True
            loop = asyncio.get_running_loop()
            try:
                for part in parts:
                    await loop.sock_sendall(self._sock, part)
            except OSError as error:
                raise PeerLost(f"the connection broke while sending: {error}") from error
            self._is_torn = False

    async def receive(self) -> bytes:
        while True:
            await self._fill(memoryview(self._header))
            header = decode_header(self._header)
            match header.kind:
                case FrameKind.SEGMENT:
                    await self._fill(self._zone_for(header))
                case FrameKind.MESSAGE:
                    message = bytearray(header.length)
                    await self._fill(memoryview(message))
                    check_message(header, message)
                    return bytes(message)

    def _zone_for(self, header: FrameHeader) -> memoryview:
        if header.zone >= len(self._zones) or header.length > len(self._zones[header.zone]):
            raise Corrupt(f"{header.length} bytes for zone {header.zone!r}, of {len(self._zones)} zones")
        return self._zones[header.zone][: header.length]

    async def _fill(self, target: memoryview) -> None:
        loop, got = asyncio.get_running_loop(), 0
        while got < len(target):
            try:
                count = await loop.sock_recv_into(self._sock, target[got:])
            except OSError as error:
                raise PeerLost(f"the connection broke: {error}") from error
            if count == 0:
                raise PeerLost("the connection was closed by the other side")
            got += count
            self._heard += count

    async def close(self) -> None:
        self._is_torn = True
        self._sock.close()


async def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _parse(endpoint: str) -> tuple[str, int]:
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal():
        raise ValueError(f"not a tcp endpoint: {endpoint!r}; one looks like 'tcp://127.0.0.1:41001'")
    return host.strip("[]"), int(port)
