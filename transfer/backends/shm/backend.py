"""Shared memory between processes of one host."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from common.config.types import TransferConfig
from transfer.backends.base import Backend, BackendTraits, Buffer, Link, Listener
from transfer.backends.shm.listener import ShmListener
from transfer.backends.shm.memory import OwnZone, free_zone, make_zone
from transfer.backends.shm.place import Place
from transfer.backends.shm.sink_link import SinkLink
from transfer.backends.shm.stream import FdStream
from transfer.errors import PeerLost

_ROOT = 0
_QUEUE_PAUSE_S = 0.01


class ShmBackend(Backend):
    """Both sides must be on one host and in one network namespace, or have `folder` in common (a volume that two
    containers mount). Linux only. Links are made between processes of `users`."""

    scheme = "shm"

    def __init__(
        self, folder: Path | None = None, users: frozenset[int] | None = None, place: Place | None = None
    ) -> None:
        """`users`: by number; None is this process's own and root. `place` is found out when not given.

        Raises OSError where the kernel does not say where this is.
        """
        self._place = place or Place.here(folder)
        self._users = frozenset({os.geteuid(), _ROOT}) if users is None else users

    @classmethod
    def from_config(cls, config: TransferConfig) -> "ShmBackend":
        """In transfer.shm_folder where it is given. Raises OSError where there is no shared memory to be had."""
        return cls(None if config.shm_folder is None else Path(config.shm_folder))

    @property
    def traits(self) -> BackendTraits:
        """The kernel vouches for the other process's user; P writes zones whenever it is scheduled."""
        return BackendTraits(same_host=True, authenticated=True, remote_writes=True)

    def reaches(self, endpoint: str) -> bool:
        """Whether it is in the same place."""
        try:
            return self._place.has(endpoint)
        except ValueError:
            return False

    def allocate(self, num_bytes: int) -> Buffer:
        """Memory of its own behind a descriptor of its own."""
        view, zone = make_zone(num_bytes)
        return Buffer(view, zone)

    def free(self, buffer: Buffer) -> None:
        """Unmapped here, when the caller's own slices of the view are gone too. P may keep it, and write it in vain."""
        assert isinstance(buffer.handle, OwnZone)
        free_zone(buffer.view, buffer.handle)

    async def listen(self, accept: Callable[[Link], None]) -> Listener:
        """Open an endpoint; raises OSError."""
        return ShmListener(self._place, self._users, accept)

    async def connect(self, endpoint: str) -> Link:
        """Raises PeerLost when nobody answers there or it is out of reach, ValueError for what is not an endpoint."""
        if not self._place.has(endpoint):
            raise PeerLost(f"{endpoint!r} is on another host, in another network namespace, or in another folder")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await _connect(sock, self._place.address(endpoint))
            stream = FdStream(sock)
            if stream.peer_uid not in self._users:
                raise PeerLost(f"{endpoint!r} is held by user {stream.peer_uid}; trusted are {sorted(self._users)!r}")
            return SinkLink(stream)
        except OSError as error:
            sock.close()
            raise PeerLost(f"cannot connect to {endpoint!r}: {error}") from error
        except BaseException:
            sock.close()
            raise


async def _connect(sock: socket.socket, address: str) -> None:
    """A Unix socket is connected at once, or its listener's queue is full: then it is asked again until cancelled."""
    while True:
        try:
            sock.connect(address)
        except BlockingIOError:
            await asyncio.sleep(_QUEUE_PAUSE_S)
        else:
            return
