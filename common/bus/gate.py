"""The gateway's door: who may connect, under which id, and whose key has gone away meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import zmq

from common.bus import zap
from common.bus.drops import Drops
from common.bus.keys import KeyPair, PublicKey, allowed_files, read_allowed, read_gateway
from common.bus.sockets import Readiness, drain, send_now
from common.errors import ConfigError
from common.ids import InstanceId
from common.tasks import TaskScope

_log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""Seconds between looks at the allowed keys."""
_BATCH: Final = 32

_Stamps = tuple[tuple[str, int, int, int], ...]


class Gate:
    """Keeps the folder of keys (see common.bus.keys) in force on one server.

    CURVE asks for a key when a connection is made and never again; so `holder` says of each message whether the key it
    came under is still allowed, and `on_withdrawn` gets every instance whose key went away or was replaced, within
    about LOOK_S: whoever keeps members ends that one's membership.
    """

    def __init__(
        self, folder: Path, *, on_withdrawn: Callable[[InstanceId], None] = lambda _: None, look_s: float = LOOK_S
    ) -> None:
        self._folder = folder
        self._on_withdrawn = on_withdrawn
        self._look_s = look_s
        self._allowed: Mapping[PublicKey, InstanceId] = {}
        self._tasks = TaskScope("gate")
        self._zap: zmq.SyncSocket | None = None
        self._readiness: Readiness | None = None

    async def open(self, context: zmq.Context[zmq.SyncSocket], drops: Drops) -> KeyPair:
        """Answer whoever asks in `context`; the key to require keys with. Raises ConfigError."""
        try:
            own = await asyncio.to_thread(read_gateway, self._folder)
            stamps, self._allowed = await asyncio.to_thread(self._read)
        except OSError as error:
            raise ConfigError(
                f"cannot read the allowed keys: {error}; gateway.control_keys names the folder"
            ) from error
        if not self._allowed:
            _log.warning("no instance may join: %s has no allowed keys; `pdmesh keys init` makes them", self._folder)
        socket = self._zap = context.socket(zmq.ROUTER)
        socket.set(zmq.LINGER, 0)
        socket.bind(zap.ENDPOINT)
        self._readiness = Readiness(socket)
        self._tasks.start(self._answer(socket, self._readiness, drops), "answer")
        self._tasks.start(self._watch(stamps), "watch")
        return own

    async def close(self) -> None:
        """Let nobody in any more. Idempotent."""
        await self._tasks.close()
        if self._readiness is not None and self._zap is not None:
            self._readiness.stop()
            self._zap.close()
            self._readiness = self._zap = None

    def holder(self, user: str) -> InstanceId | None:
        """Whose key it is that ZeroMQ gives as a message's user id; None: it is not allowed any more."""
        return self._allowed.get(user.encode())

    async def _answer(self, socket: zmq.SyncSocket, readiness: Readiness, drops: Drops) -> None:
        while True:
            await readiness.wait()
            for asker, empty, *request in drain(socket, _BATCH):
                answer = zap.answer(request, self._allowed)
                send_now(socket, asker, empty, *answer.frames)
                if answer.refused is not None:
                    drops.count_refused(*answer.refused)

    async def _watch(self, stamps: _Stamps) -> None:
        is_blind = False
        while True:
            await asyncio.sleep(self._look_s)
            try:
                if await asyncio.to_thread(self._stamps) != stamps:
                    stamps, allowed = await asyncio.to_thread(self._read)
                    self._change(allowed)
                is_blind = False
            except OSError as error:
                if not is_blind:
                    _log.error("cannot look at the allowed keys, and go on with those known: %s", error)
                is_blind = True

    def _change(self, allowed: Mapping[PublicKey, InstanceId]) -> None:
        before, self._allowed = self._allowed, allowed
        gone = {instance for key, instance in before.items() if allowed.get(key) != instance}
        _log.info("the allowed keys have changed: %s may join", ", ".join(sorted(allowed.values())) or "nobody")
        for instance in sorted(gone):
            self._on_withdrawn(instance)

    def _read(self) -> tuple[_Stamps, Mapping[PublicKey, InstanceId]]:
        # The stamps first: a file that changes between the two is read again.
        return self._stamps(), read_allowed(self._folder)

    def _stamps(self) -> _Stamps:
        found = []
        for path in allowed_files(self._folder):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((path.name, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)
