"""P's open endpoint: a Unix socket whose callers the kernel vouches for."""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection

from common.tasks import TaskScope
from transfer.backends.base import Link, Listener
from transfer.backends.shm.mappings import KeptMappings
from transfer.backends.shm.place import Place
from transfer.backends.shm.source_link import SourceLink
from transfer.backends.shm.stream import FdStream

_log = logging.getLogger(__name__)

_BACKLOG = 128
_ACCEPT_PAUSE_S = 0.1
"""After an accept that failed (too many open files, say), so that the loop is not spun."""


class ShmListener(Listener):
    """Accepts links from processes of `users`, and owns the mappings that these leave behind."""

    def __init__(self, place: Place, users: Collection[int], accept: Callable[[Link], None]) -> None:
        """Raises OSError when the place cannot be used, ValueError when its path is too long."""
        self._place = place
        self._users = users
        self._accept = accept
        self._endpoint = place.new_endpoint()
        self._kept = KeptMappings()
        place.sweep()
        self._sock = _bind(place.address(self._endpoint))
        self._tasks = TaskScope(self._endpoint)
        self._tasks.start(self._run(), "accept")

    @property
    def endpoint(self) -> str:
        """See Listener.endpoint."""
        return self._endpoint

    async def _run(self) -> None:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
            except OSError as error:
                _log.warning("%s could not accept a connection: %s", self._endpoint, error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        stream = FdStream(sock)
        if stream.peer_uid not in self._users:
            _log.warning("%s turned a process of user %d away", self._endpoint, stream.peer_uid)
            stream.close()
            return
        self._accept(SourceLink(stream, self._kept))

    async def close(self) -> None:
        """See Listener.close. Links that live on keep no mappings for later ones."""
        await self._tasks.close()
        self._kept.close()
        self._sock.close()
        self._place.leave(self._endpoint)


def _bind(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
