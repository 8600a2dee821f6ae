"""The backend itself: opens ports and dials."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.clock import Clock, SystemClock
from common.config.types import TlsConfig, TransferConfig
from common.errors import ConfigError
from transfer.backends.base import Backend, BackendTraits, Link, Listener
from transfer.backends.tcp.link import SinkLink, Striping
from transfer.backends.tcp.listener import TcpListener
from transfer.backends.tcp.stream import Stream
from transfer.backends.tcp.tls import TlsFiles, TlsIdentity
from transfer.errors import PeerLost
from transfer.frames import encode_hello

_BACKLOG = 128
_LAST_PORT = 65535


class TcpBackend(Backend):
    """Listens on `host` at a free port; peers are told `advertise` instead where `host` is not reachable as such.

    Large hand-offs use more connections, as `striping` says.  With `tls`, every connection is encrypted and both sides
    must show a certificate of the same CA.
    """

    scheme = "tcp"

    def __init__(
        self,
        host: str = "127.0.0.1",
        advertise: str | None = None,
        tls: TlsFiles | None = None,
        striping: Striping | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Raises ValueError for TLS files that cannot be used."""
        self._host = host
        self._advertise = advertise or host
        self._identity = None if tls is None else TlsIdentity(tls)
        self._striping = striping or Striping()
        self._clock = clock or SystemClock()

    @classmethod
    def from_config(cls, config: TransferConfig) -> "TcpBackend":
        """On transfer.host, with transfer.tls where it is given. Raises ConfigError for TLS files that do not work."""
        try:
            return cls(config.host, tls=None if config.tls is None else _tls_files(config.tls))
        except (OSError, ValueError) as error:
            raise ConfigError(f"transfer.tls cannot be used: {error}") from error

    @property
    def traits(self) -> BackendTraits:
        """Without TLS anybody who reaches the port may speak."""
        return BackendTraits(authenticated=self._identity is not None)

    async def listen(self, accept: Callable[[Link], None]) -> Listener:
        """Open a port; raises OSError when the host is not one of this machine's."""
        family, address = await _resolve(self._host, 0)
        sock = socket.create_server((address[0], 0), family=family, backlog=_BACKLOG)
        sock.setblocking(False)
        bracketed = f"[{self._advertise}]" if ":" in self._advertise else self._advertise
        endpoint = f"tcp://{bracketed}:{sock.getsockname()[1]}"
        return TcpListener(sock, endpoint, accept, self._striping, self._identity, self._clock)

    async def connect(self, endpoint: str) -> Link:
        """Connect; raises PeerLost when nobody answers and ValueError for something that is not an endpoint."""
        host, port = _parse(endpoint)
        try:
            family, address = await _resolve(host, port)
        except OSError as error:
            raise PeerLost(f"cannot resolve {endpoint!r}: {error}") from error
        dial = partial(self._dial, family, address)
        stream = await dial()
        try:
            await stream.send(encode_hello())
        except BaseException:
            stream.close()
            raise
        return SinkLink(stream, dial, self._striping)

    async def _dial(self, family: socket.AddressFamily, address: tuple[str, int]) -> Stream:
        try:
            stream = Stream(socket.socket(family, socket.SOCK_STREAM))
        except OSError as error:
            raise PeerLost(f"cannot open a socket: {error}") from error
        try:
            await stream.connect(address)
            if self._identity is not None:
                await stream.secure(self._identity, is_server=False)
        except BaseException:
            stream.close()
            raise
        return stream


async def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _parse(endpoint: str) -> tuple[str, int]:
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise ValueError(f"not a tcp endpoint: {endpoint!r}; one looks like 'tcp://127.0.0.1:41001'")
    return host.strip("[]"), int(port)


def _tls_files(config: TlsConfig) -> TlsFiles:
    return TlsFiles(Path(config.certificate), Path(config.key), Path(config.authority))
