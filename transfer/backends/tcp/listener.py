"""One port for both kinds of connection, and a bounded waiting room for those that have not said yet which they are."""

import asyncio
import logging
import socket
from collections.abc import Callable

from common.clock import Clock
from common.logs import LimitedLog
from common.tasks import TaskScope
from transfer.backends.base import Link, Listener
from transfer.backends.tcp.invitations import Invitations
from transfer.backends.tcp.link import SourceLink, Striping, read_frame, read_header
from transfer.backends.tcp.stream import Stream
from transfer.backends.tcp.tls import TlsIdentity
from transfer.errors import Corrupt, TransferError
from transfer.frames import FrameKind

_log = logging.getLogger(__name__)

WAITING_ROOM = 64
"""Connections that have not introduced themselves; one more puts the oldest out.  So strangers that say nothing cannot
keep peers away, who speak at once."""
GREETING_TIMEOUT_S = 5.0
"""For the whole introduction, handshake included, however slowly its bytes come."""
_CROWD = 4
"""Connections in the waiting room from which on others get their turn after each accept."""
_ACCEPT_PAUSE_S = 0.1
"""After an accept that failed (too many open files, say), so that the loop is not spun."""


class TcpListener(Listener):
    """Owns the listening socket and the connections in its waiting room."""

    def __init__(
        self,
        sock: socket.socket,
        endpoint: str,
        accept: Callable[[Link], None],
        striping: Striping,
        identity: TlsIdentity | None,
        clock: Clock,
    ) -> None:
        self._sock = sock
        self._endpoint = endpoint
        self._accept = accept
        self._striping = striping
        self._identity = identity
        self._warnings = LimitedLog(_log, clock)
        self._invitations = Invitations()
        self._waiting: dict[Stream, asyncio.Task[bool]] = {}
        self._tasks = TaskScope(endpoint)
        self._tasks.start(self._run(), "accept")

    @property
    def endpoint(self) -> str:
        """With the advertised host."""
        return self._endpoint

    async def close(self) -> None:
        """Also to data connections: what is not joined yet stays on one connection."""
        await self._tasks.close()
        self._sock.close()

    async def _run(self) -> None:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
                stream = Stream(sock)
            except OSError as error:
                self._warnings.warning("%s could not accept a connection: %s", self._endpoint, error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            self._admit(stream)
            if len(self._waiting) > _CROWD:
                await asyncio.sleep(0)  # a flood must not keep the loop to itself

    def _admit(self, stream: Stream) -> None:
        if len(self._waiting) >= WAITING_ROOM:
            self._warnings.warning(
                "%s: %d connections have not said what they are; the oldest is put out", self._endpoint, WAITING_ROOM
            )
            self._waiting.pop(next(iter(self._waiting))).cancel()
        task = self._tasks.start(self._greet(stream), "greet")
        self._waiting[stream] = task
        # Also when it is cancelled before its first step.
        task.add_done_callback(lambda task: self._leave(stream, task))

    def _leave(self, stream: Stream, task: "asyncio.Task[bool]") -> None:
        self._waiting.pop(stream, None)
        if task.cancelled() or task.exception() is not None or not task.result():
            stream.close()

    async def _greet(self, stream: Stream) -> bool:
        """Whether the stream belongs to somebody now."""
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                await self._introduce(stream)
        except (TransferError, TimeoutError) as error:
            self._warnings.warning("%s turned a connection away: %s", self._endpoint, error or "it said nothing")
            return False
        return True

    async def _introduce(self, stream: Stream) -> None:
        if self._identity is not None:
            await stream.secure(self._identity, is_server=True)
        header = await read_header(stream)
        match header.kind:
            case FrameKind.HELLO:
                self._accept(SourceLink(stream, self._invitations, self._striping))
            case FrameKind.JOIN:
                join = self._invitations.redeem(await read_frame(stream, header))
                join(stream, header.zone, header.mark)
            case _:
                raise Corrupt(f"a connection begins with HELLO or JOIN, not with {header.kind.name}")
