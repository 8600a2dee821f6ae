"""One blocking TCP connection over loopback: the yardstick of socket transports."""

import socket

from services.bench.transfer.peers.base import DEADLINE_S, Bytes, Peer, RawGiver, RawTaker

_PIECE = 1 << 20
_HOST = "127.0.0.1"
_START = b"."


class RawTcp(Peer):
    """`sendall` against `recv_into`."""

    name = "raw_tcp"
    settings = f"one connection, blocking, sendall of {_PIECE >> 10} KiB, recv_into"

    def version(self) -> str:
        """Of the machine's own."""
        return "os"

    def giver(self, buffer: Bytes) -> RawGiver:
        """See Peer."""
        return _TcpGiver(buffer)

    def taker(self, buffer: Bytes) -> RawTaker:
        """See Peer."""
        return _TcpTaker(buffer)


class _TcpGiver(RawGiver):
    def __init__(self, buffer: Bytes) -> None:
        self._view = buffer.data
        self._listener = socket.create_server((_HOST, 0))
        self._listener.settimeout(DEADLINE_S)
        self._connection: socket.socket | None = None

    def meet(self, taker: bytes) -> bytes:  # noqa: ARG002 - the taker dials
        return str(self._listener.getsockname()[1]).encode()

    def give(self, num_bytes: int) -> None:
        if self._connection is None:
            self._connection, _ = self._listener.accept()
            _prepare(self._connection)
        if self._connection.recv(1) != _START:
            raise ConnectionError("the taker is gone")
        for start in range(0, num_bytes, _PIECE):
            self._connection.sendall(self._view[start : min(start + _PIECE, num_bytes)])

    def close(self) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()


class _TcpTaker(RawTaker):
    def __init__(self, buffer: Bytes) -> None:
        self._view = buffer.data
        self._connection: socket.socket | None = None

    def hello(self) -> bytes:
        return b""

    def meet(self, giver: bytes) -> None:
        self._connection = socket.create_connection((_HOST, int(giver)))
        _prepare(self._connection)

    def take(self, num_bytes: int) -> None:
        assert self._connection is not None, "meet comes first"
        self._connection.sendall(_START)
        received = 0
        while received < num_bytes:
            count = self._connection.recv_into(self._view[received : min(received + _PIECE, num_bytes)])
            if count == 0:
                raise ConnectionError("the giver is gone")
            received += count

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
