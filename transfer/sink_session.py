"""D's shell for one hand-off: unpack in a thread while the next segment is on the wire."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import xxhash

from common.kv.ticket import Ticket
from transfer.binding import Binding
from transfer.channel import Channel
from transfer.errors import Corrupt
from transfer.protocol.giving import Segment
from transfer.protocol.messages import WIRE_VERSION, Open, ToSink, ToSource, ZonesFreed
from transfer.protocol.taking import Taking
from transfer.waiting import race
from transfer.workshop import Workshop


class Landed(msgspec.Struct, frozen=True):
    """The KV is in the blocks, whole and proved. Seconds count from the connection to P."""

    payload_bytes: int
    seconds: float
    first_byte_s: float
    """When the first segment had arrived."""
    last_byte_s: float
    """When the last one had."""


class TakingSession:
    """Takes over one hand-off. When `run` has ended, in whatever way, nothing writes the blocks."""

    def __init__(
        self,
        channel: Channel[ToSink, ToSource],
        ticket: Ticket,
        blocks: Sequence[int],
        num_tokens: int,
        zones: Sequence[bytearray],
        workshop: Workshop,
        on_received: Callable[[int], None],
    ) -> None:
        limits = workshop.limits
        self._channel = channel
        self._ticket = ticket
        self._blocks = blocks
        self._num_tokens = num_tokens
        self._zones = zones
        self._workshop = workshop
        self._on_received = on_received
        self._taking = Taking(
            workshop.memory.layout,
            num_tokens,
            len(zones),
            limits.segment_bytes,
            checksum=limits.checksum,
        )
        self._written: asyncio.Queue[Segment] = asyncio.Queue()
        self._arrivals_at: list[float] = []

    async def run(self, patience_s: float) -> Landed:
        """Ask for the KV and take it in; raises a TransferError. The caller then tells P how it ended."""
        started_at = self._workshop.clock.now()
        await self._channel.send(self._request(patience_s))
        await race(self._workshop.tasks, "take", self._unpack, self._listen)
        return Landed(
            payload_bytes=self._taking.plan.payload_bytes(self._num_tokens),
            seconds=self._workshop.clock.now() - started_at,
            first_byte_s=self._arrivals_at[0] - started_at,
            last_byte_s=self._arrivals_at[-1] - started_at,
        )

    def _request(self, patience_s: float) -> Open:
        limits = self._workshop.limits
        return Open(
            wire_version=WIRE_VERSION,
            ticket=self._ticket,
            layout=self._workshop.memory.layout,
            num_tokens=self._num_tokens,
            zones=len(self._zones),
            segment_bytes=limits.segment_bytes,
            descriptor=self._channel.link.register([memoryview(zone) for zone in self._zones]),
            checksum=limits.checksum,
            patience_s=patience_s,
        )

    async def _listen(self) -> None:
        while True:
            segment = self._taking.handle(await self._channel.next())
            if segment is not None:
                self._arrivals_at = [*self._arrivals_at[:1], self._workshop.clock.now()]
                self._written.put_nowait(segment)

    async def _unpack(self) -> None:
        segment = await self._written.get()
        binding = await self._workshop.workers.run(
            partial(Binding, self._taking.plan, self._workshop.memory, self._blocks, self._num_tokens)
        )
        while True:
            zone = self._zones[segment.zone]
            await self._workshop.workers.run(partial(_unpack_segment, binding, segment, zone))
            self._taking.unpacked(segment)
            self._on_received(segment.length)
            if self._taking.is_complete:
                return
            await self._channel.send(ZonesFreed((segment.zone,)))
            segment = await self._written.get()


def _unpack_segment(binding: Binding, segment: Segment, zone: bytearray) -> None:
    if segment.checksum is not None:
        digest = xxhash.xxh3_64_intdigest(memoryview(zone)[: segment.length])
        if digest != segment.checksum:
            raise Corrupt(
                f"the checksum of segment {segment.part!r} is {digest:016x}, announced was {segment.checksum:016x}"
            )
    binding.unpack(segment.part, zone)
