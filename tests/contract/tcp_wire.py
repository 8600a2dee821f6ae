"""Bare links, plain sockets and a wire that can be tampered with, for the tests of tcp."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from common.tasks import TaskScope
from transfer.backends.base import Backend, Buffer, Link
from transfer.backends.tcp import Striping, TcpBackend
from transfer.backends.tcp.lanes import THREAD_NAME, Lane
from transfer.backends.tcp.link import SinkLink, SourceLink
from transfer.testing import Mesh, eventually

ALWAYS = Striping(connections=2, segment_bytes=1, handoff_bytes=0)
"""Data connections for every hand-off, as soon as they have joined."""
Tamper = Callable[[int, bytes], bytes | None]
"""(number of the connection, what P has sent) → what D gets; None breaks the connection, b"" holds the bytes back."""


@dataclass
class Pair:
    """Both ends of one link in this process, and D's zones."""

    backend: Backend
    endpoint: str
    source: SourceLink
    sink: SinkLink
    zones: list[Buffer]

    async def pass_on(self, zone: int, data: bytes) -> None:
        """Write, announce, hear, and compare."""
        hearing = asyncio.get_running_loop().create_task(self.sink.receive())
        await self.source.write(zone, memoryview(data))
        await self.source.send(b"written")
        assert await hearing == b"written"
        assert self.zones[zone].view[: len(data)] == data

    async def join(self) -> None:
        """Write until the data connections are there."""
        while not (self.source._lanes and self.sink._lanes):
            await self.pass_on(0, b"until all have joined")

    @property
    def lanes(self) -> list[Lane]:
        """Of both ends."""
        return [*self.source._lanes, *self.sink._lanes]


@asynccontextmanager
async def pair(backend: Backend | None = None, zone_bytes: int = 1 << 20) -> AsyncIterator[Pair]:
    """Linked ends with two zones; closed in the end, and then no thread is left."""
    backend = backend or TcpBackend(striping=ALWAYS)
    links: asyncio.Queue[Link] = asyncio.Queue()
    listener = await backend.listen(links.put_nowait)
    sink = await backend.connect(listener.endpoint)
    source = await links.get()
    assert isinstance(sink, SinkLink)
    assert isinstance(source, SourceLink)
    zones = [backend.allocate(zone_bytes) for _ in range(2)]
    source.attach(sink.register(zones))
    try:
        yield Pair(backend, listener.endpoint, source, sink, zones)
    finally:
        for close in (source.close, sink.close, listener.close):
            await close()
        assert lane_threads() == 0


def lane_threads() -> int:
    """Threads of data connections in this process."""
    return sum(thread.name == THREAD_NAME for thread in threading.enumerate())


async def until_striped(made: Mesh) -> None:
    """Until the one hand-off of `made` has its data connections at P."""
    await eventually(
        lambda: any(isinstance(link, SourceLink) and bool(link._lanes) for link in made.source._workshop.links)
    )


def address_of(endpoint: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


async def is_turned_away(data: bytes, endpoint: str) -> bool:
    """Send `data` from a socket of one's own and wait until the other side has closed it."""
    reader, writer = await asyncio.open_connection(*address_of(endpoint))
    try:
        writer.write(data)
        while await reader.read(4096):
            pass
    except ConnectionError:
        pass
    finally:
        await hang_up(writer)
    return True


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close it, whatever has become of it."""
    writer.transport.abort()
    # In a task of its own: who is cancelled while it waits would cancel the one future on which all others wait, too.
    closed = asyncio.ensure_future(writer.wait_closed())
    await asyncio.wait([closed])
    if not closed.cancelled():
        closed.exception()


class Relay:
    """Stands between D and P. `tamper` may be replaced at any time; 0 is the control connection of the first link."""

    def __init__(self, target: str) -> None:
        self._target = address_of(target)
        self._tasks = TaskScope("relay")
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server
        self.endpoint = ""
        self.connections = 0
        self.tamper: Tamper = lambda _number, data: data

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Break everything."""
        self._server.close()
        await self._tasks.close()
        for writer in self._writers:
            await hang_up(writer)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._tasks.start(self._run(self.connections, reader, writer), "relay")
        self.connections += 1

    async def _run(self, number: int, from_sink: asyncio.StreamReader, to_sink: asyncio.StreamWriter) -> None:
        from_source, to_source = await asyncio.open_connection(*self._target)
        self._writers.append(to_source)
        pumps = [
            self._tasks.start(_pump(from_sink, to_source, lambda data: data), "to source"),
            self._tasks.start(_pump(from_source, to_sink, lambda data: self.tamper(number, data)), "to sink"),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await hang_up(to_sink)
        await hang_up(to_source)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes | None]
) -> None:
    try:
        while data := await reader.read(1 << 16):
            changed = change(data)
            if changed is None:
                return
            writer.write(changed)
            await writer.drain()
    except ConnectionError:
        pass


@asynccontextmanager
async def relayed(endpoint: str) -> AsyncIterator[Relay]:
    """A relay to the source at `endpoint`."""
    relay = Relay(endpoint)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.close()
