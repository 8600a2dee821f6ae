"""The self-test of a link: how fast it moves bytes that mean nothing, and how long a round trip takes."""

import asyncio
from collections import deque
from typing import TypeVar

import msgspec

from common.clock import Clock
from common.tasks import TaskScope
from transfer.backends.base import Buffer
from transfer.channel import Channel
from transfer.errors import Aborted, Corrupt
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
from transfer.staging import StagingPool
from transfer.waiting import Wakeup, race

PROBE_BYTES = 32 << 20
"""Moved by one self-test: enough for a link to reach its speed, little enough to take some milliseconds."""


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


async def serve_probe(
    channel: Channel[ToSource, ToSink], probe: Probe, staging: StagingPool, segment_bytes: int, tasks: TaskScope
) -> None:
    """P: write what was asked for, as credit allows, and wait until D has seen it. Raises a TransferError."""
    channel.link.attach(probe.descriptor)
    length = min(probe.segment_bytes, segment_bytes)
    await channel.send(ProbeAccepted(length))
    test = _ServedProbe(channel, probe, length)
    # Listening goes on while a write waits for a peer that may never read.
    await race(tasks, "probe", test.listen, lambda: test.write_all(staging))


class _ServedProbe:
    """P's side of one self-test, and which zones may be written."""

    def __init__(self, channel: Channel[ToSource, ToSink], probe: Probe, length: int) -> None:
        self._channel = channel
        self._segments = probe.segments
        self._length = length
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
                    raise Corrupt(f"a self-test has no {message!r} here")

    async def write_all(self, staging: StagingPool) -> None:
        """Every segment; then nothing more: who listens says when it is over."""
        async with staging.lend(1) as loan:
            for _ in range(self._segments):
                while not self._free:
                    await self._freed.wait()
                zone = self._free.popleft()
                self._busy.add(zone)
                await _write(self._channel, zone, loan.buffers[0].view[: self._length])
        await asyncio.get_running_loop().create_future()


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
        raise Corrupt(f"a self-test has no {message!r} here")
    return message
