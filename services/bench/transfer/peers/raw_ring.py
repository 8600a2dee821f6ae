"""A ring in shared memory, copied in and out by one thread each: what a machine allows two cores that copy at a time.

It is the bound of the shm backend, which does the same two copies: cores share the memory's bandwidth, so that it may
lie well below that of one memcpy.
"""

import mmap
import os
import socket

import numpy as np

from services.bench.transfer.peers.base import DEADLINE_S, Bytes, Peer, RawGiver, RawTaker

_SLOT = 4 << 20
_SLOTS = 8
_START, _WRITTEN, _FREED = b"s", b"w", b"f"


class RawRing(Peer):
    """`np.copyto` into slots, `np.copyto` out of them, doorbells over a Unix socket."""

    name = "raw_ring"
    settings = f"{_SLOTS} slots of {_SLOT >> 20} MiB, np.copyto in and out, blocking"

    def version(self) -> str:
        """Of the machine's own."""
        return "os"

    def giver(self, buffer: Bytes) -> RawGiver:
        """See Peer."""
        return _RingGiver(buffer)

    def taker(self, buffer: Bytes) -> RawTaker:
        """See Peer."""
        return _RingTaker(buffer)


class _RingGiver(RawGiver):
    def __init__(self, buffer: Bytes) -> None:
        self._buffer = buffer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("")  # an abstract name of the kernel's choice
        self._listener.listen(1)
        self._listener.settimeout(DEADLINE_S)
        self._connection: socket.socket | None = None

    def meet(self, taker: bytes) -> bytes:  # noqa: ARG002 - the taker dials
        name: bytes = self._listener.getsockname()
        return name.hex().encode()

    def give(self, num_bytes: int) -> None:
        if self._connection is None:
            self._connection, _ = self._listener.accept()
            _, fds, _, _ = socket.recv_fds(self._connection, 1, 1)
            self._ring = _mapped(fds[0])
            os.close(fds[0])
        _expect(self._connection, _START)
        credit = _SLOTS
        for number, start in enumerate(range(0, num_bytes, _SLOT)):
            while credit == 0:
                credit += len(_heard(self._connection))
            piece = self._buffer[start : min(start + _SLOT, num_bytes)]
            np.copyto(self._ring[number % _SLOTS, : len(piece)], piece)
            credit -= 1
            self._connection.sendall(_WRITTEN)
        while credit < _SLOTS:
            credit += len(_heard(self._connection))

    def close(self) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()


class _RingTaker(RawTaker):
    def __init__(self, buffer: Bytes) -> None:
        self._buffer = buffer
        self._connection: socket.socket | None = None

    def hello(self) -> bytes:
        return b""

    def meet(self, giver: bytes) -> None:
        fd = os.memfd_create("pdmesh-bench", os.MFD_CLOEXEC)
        os.posix_fallocate(fd, 0, _SLOT * _SLOTS)
        self._ring = _mapped(fd)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(bytes.fromhex(giver.decode()))
        socket.send_fds(self._connection, [b"."], [fd])
        os.close(fd)

    def take(self, num_bytes: int) -> None:
        assert self._connection is not None, "meet comes first"
        self._connection.sendall(_START)
        number = start = 0
        while start < num_bytes:
            for _ in _heard(self._connection):
                piece = self._buffer[start : min(start + _SLOT, num_bytes)]
                np.copyto(piece, self._ring[number % _SLOTS, : len(piece)])
                number, start = number + 1, start + len(piece)
                self._connection.sendall(_FREED)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _mapped(fd: int) -> Bytes:
    return np.frombuffer(mmap.mmap(fd, _SLOT * _SLOTS), dtype=np.uint8).reshape(_SLOTS, _SLOT)


def _heard(connection: socket.socket) -> bytes:
    if not (marks := connection.recv(64)):
        raise ConnectionError("the other side is gone")
    return marks


def _expect(connection: socket.socket, mark: bytes) -> None:
    if connection.recv(1) != mark:
        raise ConnectionError("the taker is gone")
