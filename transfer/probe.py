"""The self-test of a link: how fast it moves bytes that mean nothing, and how long a round trip takes."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from common.clock import Clock
from common.tasks import TaskScope
from transfer.backends.base import Backend, Buffer
from transfer.channel import Channel
from transfer.errors import Aborted, Corrupt, TimedOut, brief
from transfer.protocol.messages import (
    MAX_PROBE_SEGMENTS,
    Abort,
    AllLanded,
    Probe,
    ProbeAccepted,
    ProbeWritten,
    ToSink,
    ToSource,
    ZonesFreed,
)
from transfer.waiting import Wakeup, race

PROBE_BYTES = 32 << 20
"""Moved by one self-test: enough for a link to reach its speed, little enough to take some milliseconds."""
MEASURE_S: Final = 30.0
"""Longest self-test of one path, at either end: a peer may be alive and still never send, or take, what it should."""
TURNS: Final = 4
"""Self-tests that one source serves at a time: few, so that each measures the link rather than the others."""
SEGMENT_S: Final = 5.0
"""Longest that a sink may take over one segment, so that nobody keeps a turn who makes no use of it. Who needs longer
would not be done in MEASURE_S either."""


M = TypeVar("M", bound=ToSink)


class LinkFigures(msgspec.Struct, frozen=True):
    """One self-test of one backend between one pair."""

    scheme: str
    bytes_per_s: float
    round_trip_s: float
    """From a message to its answer; both event loops are in it."""


class Acquaintance(msgspec.Struct, frozen=True):
    """What a sink found out about its paths to one source."""

    figures: tuple[LinkFigures, ...]
    """Best first, at least one."""
    failed: tuple[str, ...]
    """What went wrong with each of the other paths."""


class ProbeServer:
    """P's side of every self-test. Whoever reaches the port may ask for one, ticket or none: what it sends comes from
    memory of its own, in which there never was anything, and hand-offs need nothing that a self-test holds."""

    def __init__(self, backends: Sequence[Backend], segment_bytes: int, tasks: TaskScope) -> None:
        self._backends = {backend.scheme: backend for backend in backends}
        self._segment_bytes = segment_bytes
        self._tasks = tasks
        self._turns = asyncio.Semaphore(TURNS)
        self._zeros: dict[str, Buffer] = {}

    async def serve(self, scheme: str, channel: Channel[ToSource, ToSink], probe: Probe) -> None:
        """Write what was asked for, in turn and as credit allows, and wait until D has seen it.

        Raises a TransferError; TimedOut when that takes longer than MEASURE_S, the wait for a turn included.
        """
        try:
            async with asyncio.timeout(MEASURE_S):
                await self._serve(scheme, channel, probe)
        except TimeoutError:
            raise TimedOut(f"the self-test took longer than {MEASURE_S} s") from None

    def close(self) -> None:
        """Give the memory back; nothing is served any more."""
        while self._zeros:
            scheme, buffer = self._zeros.popitem()
            self._backends[scheme].free(buffer)

    async def _serve(self, scheme: str, channel: Channel[ToSource, ToSink], probe: Probe) -> None:
        channel.link.attach(probe.descriptor)
        length = min(probe.segment_bytes, self._segment_bytes)
        # At once, so that D's round trip does not count the wait for a turn. It sees signs of life meanwhile.
        await channel.send(ProbeAccepted(length))
        test = _ServedProbe(channel, probe)
        # Listening goes on while a write waits for a peer that may never read.
        await race(self._tasks, "probe", test.listen, lambda: self._write(scheme, test, length))

    async def _write(self, scheme: str, test: "_ServedProbe", length: int) -> None:
        async with self._turns:
            await test.write_all(self._zeros_of(scheme).view[:length])
        await asyncio.get_running_loop().create_future()  # who listens says when it is over

    def _zeros_of(self, scheme: str) -> Buffer:
        if (kept := self._zeros.get(scheme)) is not None:
            return kept
        buffer = self._backends[scheme].allocate(self._segment_bytes)
        # Even where it is zero already: pages that were never written are one page in truth, and too fast to read.
        buffer.view[:] = bytes(self._segment_bytes)
        self._zeros[scheme] = buffer
        return buffer


class _ServedProbe:
    """P's side of one self-test, and which zones may be written."""

    def __init__(self, channel: Channel[ToSource, ToSink], probe: Probe) -> None:
        self._channel = channel
        self._segments = probe.segments
        self._free = deque(range(probe.zones))
        self._busy: set[int] = set()
        self._freed = Wakeup()

    async def listen(self) -> None:
        """Until D has seen everything."""
        while True:
            match message := await self._channel.next():
                case ZonesFreed(zones=zones) if self._busy.issuperset(zones) and len(set(zones)) == len(zones):
                    self._busy.difference_update(zones)
                    self._free.extend(zones)
                    self._freed.wake()
                case AllLanded():
                    return
                case Abort(reason=reason):
                    raise Aborted(f"the sink gave up: {reason}")
                case _:
                    raise Corrupt(f"a self-test has no {brief(message)} here")

    async def write_all(self, data: memoryview) -> None:
        """`data` once for every segment. Raises TimedOut for a sink that takes too long over one."""
        for _ in range(self._segments):
            try:
                async with asyncio.timeout(SEGMENT_S):
                    await self._write_next(data)
            except TimeoutError:
                raise TimedOut(f"the sink took longer than {SEGMENT_S} s over a segment of its self-test") from None

    async def _write_next(self, data: memoryview) -> None:
        while not self._free:
            await self._freed.wait()
        zone = self._free.popleft()
        self._busy.add(zone)
        await _write(self._channel, zone, data)


async def _write(channel: Channel[ToSource, ToSink], zone: int, data: memoryview) -> None:
    window = channel.link.window(zone, len(data))
    if window is not None:
        window[:] = data
    await channel.link.write(zone, data if window is None else window)
    await channel.send(ProbeWritten(zone))


async def measure(
    scheme: str, channel: Channel[ToSink, ToSource], zones: tuple[Buffer, ...], segment_bytes: int, clock: Clock
) -> LinkFigures:
    """D: ask for PROBE_BYTES and time them; the caller then says AllLanded. Raises a TransferError."""
    warm_up = len(zones)  # each zone's first write touches its pages, and no later one does
    segments = max(1, min(MAX_PROBE_SEGMENTS - warm_up, PROBE_BYTES // segment_bytes))
    asked_at = clock.now()
    await channel.send(Probe(len(zones), segment_bytes, warm_up + segments, channel.link.register(zones)))
    length = (await _expect(channel, ProbeAccepted)).segment_bytes
    round_trip_s = clock.now() - asked_at
    await _take_in(channel, warm_up)
    started_at = clock.now()
    await _take_in(channel, segments)
    seconds = max(clock.now() - started_at, 1e-9)
    return LinkFigures(scheme, segments * length / seconds, round_trip_s)


async def _take_in(channel: Channel[ToSink, ToSource], segments: int) -> None:
    for _ in range(segments):
        written = await _expect(channel, ProbeWritten)
        await channel.send(ZonesFreed((written.zone,)))


async def _expect(channel: Channel[ToSink, ToSource], kind: type[M]) -> M:
    message = await channel.next()
    if isinstance(message, Abort):
        raise Aborted(f"the source gave up: {message.reason}")
    if not isinstance(message, kind):
        raise Corrupt(f"a self-test has no {brief(message)} here")
    return message
