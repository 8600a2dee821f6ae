"""D's shell for one hand-off: unpack in a thread while the next segment is on the wire."""

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec
import xxhash

from common.kv.intervals import Interval
from common.kv.ticket import Ticket
from transfer.backends.base import Buffer
from transfer.binding import Binding
from transfer.channel import Channel
from transfer.errors import Corrupt
from transfer.plan import Region
from transfer.protocol.giving import Segment
from transfer.protocol.messages import Open, ToSink, ToSource, ZonesFreed
from transfer.protocol.taking import Taking
from transfer.waiting import race
from transfer.workshop import Tally, Workshop, capabilities_of


class TakeRequest(msgspec.Struct, frozen=True):
    """What to take, and where to put it."""

    ticket: Ticket
    region: Region
    blocks: tuple[int, ...]
    tokens: Interval


class Landed(msgspec.Struct, frozen=True):
    """The KV is in the blocks, whole and proved. Seconds count from the connection to P."""

    payload_bytes: int
    """On the wire."""
    scheme: str
    """Of the backend that moved it."""
    casting_side: str
    """Who converted elements: "source", "sink" or "nobody"."""
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
        request: TakeRequest,
        zones: Sequence[Buffer],
        workshop: Workshop,
        scheme: str,
        tally: Tally,
    ) -> None:
        self._channel = channel
        self._scheme = scheme
        self._request = request
        self._zones = zones
        self._workshop = workshop
        self._tally = tally
        self._capabilities = capabilities_of(workshop.memory.layout, workshop.limits)
        self._taking = Taking(
            self._capabilities, request.region, request.tokens, len(zones), checksum=workshop.limits.checksum
        )
        self._written: asyncio.Queue[Segment] = asyncio.Queue()
        self._arrivals_at: list[float] = []

    async def run(self, patience_s: float) -> Landed:
        """Ask for the KV and take it in; raises a TransferError. The caller then tells P how it ended."""
        started_at = self._workshop.clock.now()
        await self._channel.send(self._open(patience_s))
        await race(self._workshop.tasks, "take", self._unpack, self._listen)
        return Landed(
            scheme=self._scheme,
            casting_side=self._taking.agreement.casting_side,
            payload_bytes=self._taking.plan.payload_bytes(len(self._request.tokens)),
            seconds=self._workshop.clock.now() - started_at,
            first_byte_s=self._arrivals_at[0] - started_at,
            last_byte_s=self._arrivals_at[-1] - started_at,
        )

    def _open(self, patience_s: float) -> Open:
        request = self._request
        return Open(
            capabilities=self._capabilities,
            ticket=request.ticket,
            region=request.region,
            num_tokens=request.tokens.stop,
            first_token=request.tokens.start,
            zones=len(self._zones),
            descriptor=self._channel.link.register(self._zones),
            checksum=self._workshop.limits.checksum,
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
        workshop = self._workshop
        binding = await workshop.worker.run(
            partial(Binding, self._taking.plan, workshop.memory, self._request.blocks, workshop.kernel)
        )
        while True:
            zone = self._zones[segment.zone].view
            await workshop.worker.run(partial(_unpack_segment, binding, segment, zone, self._tally))
            self._taking.unpacked(segment)
            self._tally.payload_bytes += segment.length
            if self._taking.is_complete:
                return
            await self._channel.send(ZonesFreed((segment.zone,)))
            segment = await self._written.get()


def _unpack_segment(binding: Binding, segment: Segment, zone: memoryview, tally: Tally) -> None:
    if segment.checksum is not None:
        digest = xxhash.xxh3_64_intdigest(zone[: segment.length])
        if digest != segment.checksum:
            raise Corrupt(
                f"the checksum of segment {segment.part!r} is {digest:016x}, announced was {segment.checksum:016x}"
            )
    tally.clamped_elements += binding.unpack(segment.part, zone)
