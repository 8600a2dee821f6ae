"""The in-memory twin: links inside one event loop, with faults on demand. One instance is one network."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from transfer.backends.base import Backend, BackendTraits, Buffer, Link, Listener
from transfer.errors import Corrupt, PeerLost
from transfer.waiting import Wakeup

_DESCRIPTOR = b"inproc"
_QUEUED_MESSAGES = 16
"""A peer that does not read clogs the link after so many, as a socket would."""


class InprocFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes wrong on every link of a backend. Writes are counted from 0 on each link."""

    write_delay_s: float = 0.0
    corrupt_write: int | None = None
    """This write arrives with one bit flipped."""
    drop_at_write: int | None = None
    """The connection breaks instead of doing this write."""
    stall_at_write: int | None = None
    """From this write on nothing leaves the source any more, messages included, as if its process were stopped."""


class InprocBackend(Backend):
    """Source and sink share the instance. Copies run on the event loop: made for tests, not for speed."""

    scheme = "inproc"

    def __init__(self, faults: InprocFaults | None = None) -> None:
        self._faults = faults or InprocFaults()
        self._listening: dict[str, Callable[[Link], None]] = {}
        self._names = 0

    @property
    def traits(self) -> BackendTraits:
        """One process talks to itself."""
        return BackendTraits(same_host=True, authenticated=True)

    async def listen(self, accept: Callable[[Link], None]) -> Listener:
        """Open the next free name: inproc://p0, inproc://p1, …"""
        endpoint = f"inproc://p{self._names}"
        self._names += 1
        self._listening[endpoint] = accept
        return _InprocListener(endpoint, self._listening)

    async def connect(self, endpoint: str) -> Link:
        """Join the endpoint's source by a new pair of ends."""
        try:
            accept = self._listening[endpoint]
        except KeyError:
            raise PeerLost(f"nobody listens at {endpoint!r}; {sorted(self._listening)!r} do") from None
        to_source, to_sink = _Pipe(), _Pipe()
        sink = _InprocLink(inbox=to_sink, outbox=to_source, faults=InprocFaults())
        source = _InprocLink(inbox=to_source, outbox=to_sink, faults=self._faults)
        source.peer = sink
        accept(source)
        return sink


class _InprocListener(Listener):
    def __init__(self, endpoint: str, listening: dict[str, Callable[[Link], None]]) -> None:
        self._endpoint = endpoint
        self._listening = listening

    @property
    def endpoint(self) -> str:
        return self._endpoint

    async def close(self) -> None:
        self._listening.pop(self._endpoint, None)


class _Pipe:
    """Messages one way; bounded. What was put before the close can still be taken."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._is_closed = False
        self._changed = Wakeup()

    async def put(self, message: bytes) -> None:
        while len(self._messages) >= _QUEUED_MESSAGES and not self._is_closed:
            await self._changed.wait()
        if self._is_closed:
            raise PeerLost("the connection is closed")
        self._messages.append(message)
        self._changed.wake()

    async def take(self) -> bytes:
        while not self._messages:
            if self._is_closed:
                raise PeerLost("the connection was closed by the other side")
            await self._changed.wait()
        self._changed.wake()
        return self._messages.popleft()

    def close(self) -> None:
        self._is_closed = True
        self._changed.wake()


class _InprocLink(Link):
    def __init__(self, inbox: _Pipe, outbox: _Pipe, faults: InprocFaults) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._faults = faults
        self._heard = 0
        self._zones: tuple[memoryview, ...] = ()
        self._writes = 0
        self._is_stalled = False
        self._is_closed = False
        self.peer: _InprocLink | None = None

    @property
    def bytes_heard(self) -> int:
        return self._heard

    def register(self, zones: Sequence[Buffer]) -> bytes:
        self._zones = tuple(zone.view for zone in zones)
        return _DESCRIPTOR

    def attach(self, descriptor: bytes) -> None:
        if descriptor != _DESCRIPTOR:
            raise Corrupt(f"not a descriptor of inproc zones: {descriptor[:32]!r}")

    async def write(self, zone: int, data: memoryview) -> None:
        number = self._writes
        self._writes += 1
        await asyncio.sleep(self._faults.write_delay_s)
        if number == self._faults.stall_at_write:
            self._is_stalled = True
        await self._stall_if_told()
        if number == self._faults.drop_at_write:
            await self.close()
        if self._is_closed or self.peer is None or self.peer._is_closed:
            raise PeerLost("the connection is closed")
        self.peer._land(zone, data)
        if number == self._faults.corrupt_write:
            self.peer._zones[zone][len(data) // 2] ^= 1

    def _land(self, zone: int, data: memoryview) -> None:
        if zone >= len(self._zones) or len(data) > len(self._zones[zone]):
            raise Corrupt(f"{len(data)} bytes for zone {zone!r}, of {len(self._zones)} zones")
        self._zones[zone][: len(data)] = data
        self._heard += len(data)

    async def send(self, message: bytes) -> None:
        await self._stall_if_told()
        await self._outbox.put(message)

    async def receive(self) -> bytes:
        message = await self._inbox.take()
        self._heard += len(message)
        return message

    async def close(self) -> None:
        self._is_closed = True
        self._zones = ()
        self._inbox.close()
        self._outbox.close()

    async def _stall_if_told(self) -> None:
        if self._is_stalled:
            await asyncio.get_running_loop().create_future()
