"""P's shell for one accepted taker: pack in a thread while the segment before it is on the wire."""

import asyncio
from dataclasses import dataclass
from functools import partial

import xxhash

from common.kv.intervals import Interval
from common.kv.ownership import ReadBegan, ReadEnded
from transfer.backends.base import Buffer
from transfer.binding import Binding
from transfer.channel import Channel
from transfer.errors import Stopped
from transfer.limits import PACK_BUFFERS
from transfer.offer import Offer
from transfer.protocol.giving import Giving, Segment
from transfer.protocol.messages import Accepted, Capabilities, Open, SegmentWritten, ToSink, ToSource
from transfer.protocol.negotiation import Agreement
from transfer.staging import StagingPool
from transfer.waiting import race
from transfer.workshop import Tally, Workshop


@dataclass
class _Place:
    """Where one segment is packed: this side's buffer, or (None) the peer's zone itself."""

    buffer: Buffer | None


@dataclass(frozen=True)
class _Packed:
    segment: Segment
    data: memoryview
    place: _Place


class GivingSession:
    """Serves one Open. When `run` has ended, in whatever way, nothing reads the offer's blocks."""

    def __init__(
        self,
        channel: Channel[ToSource, ToSink],
        offer: Offer,
        request: Open,
        agreement: Agreement,
        workshop: Workshop,
        staging: StagingPool,
        tally: Tally,
    ) -> None:
        self._channel = channel
        self._offer = offer
        self._request = request
        self._agreement = agreement
        self._workshop = workshop
        self._staging = staging
        self._tally = tally
        self._giving = Giving(agreement, Interval(request.first_token, offer.num_tokens), request.zones)
        self._free: asyncio.Queue[_Place] = asyncio.Queue()
        self._packed: asyncio.Queue[_Packed] = asyncio.Queue()
        held, moved = offer.layers, agreement.plan.layers
        self._moved = slice(moved.start - held.start, moved.stop - held.start)

    async def run(self, capabilities: Capabilities) -> None:
        """Return when D holds everything; raises a TransferError when it never will."""
        self._channel.link.attach(self._request.descriptor)
        agreement = self._agreement
        await self._channel.send(
            Accepted(capabilities, agreement.version, agreement.segment_bytes, agreement.plan.wire.dtype)
        )
        await race(self._workshop.tasks, "give", self._listen, self._move, self._until_over)

    async def _listen(self) -> None:
        while not self._giving.handle(await self._channel.next()):
            self._offer.changed.wake()

    async def _until_over(self) -> None:
        raise Stopped(f"the offer ended before everything had landed: {await self._offer.over()!r}")

    async def _move(self) -> None:
        if self._channel.link.window(0, 0) is not None:
            await self._move_through([None] * PACK_BUFFERS)
            return
        async with self._staging.lend(PACK_BUFFERS) as loan:
            await self._move_through(loan.buffers)

    async def _move_through(self, buffers: tuple[Buffer, ...] | list[None]) -> None:
        for buffer in buffers:
            self._free.put_nowait(_Place(buffer))
        await race(self._workshop.tasks, "move", self._pack, self._write)

    async def _pack(self) -> None:
        workshop, offer = self._workshop, self._offer
        binding = await workshop.worker.run(
            partial(Binding, self._agreement.plan, workshop.memory, offer.blocks, workshop.kernel)
        )
        while True:
            place = await self._free.get()
            segment = await self._next_segment()
            data = self._data(place, segment)
            offer.apply(ReadBegan())
            try:
                packed = await workshop.worker.run(
                    partial(_pack_segment, binding, segment, data, self._tally, checksum=self._request.checksum)
                )
            finally:
                offer.apply(ReadEnded())
            self._packed.put_nowait(_Packed(packed, data, place))

    def _data(self, place: _Place, segment: Segment) -> memoryview:
        if place.buffer is not None:
            return place.buffer.view[: segment.length]
        window = self._channel.link.window(segment.zone, segment.length)
        assert window is not None  # a link has windows for all zones or for none
        return window

    async def _next_segment(self) -> Segment:
        while True:
            ready = self._offer.ready[self._moved]
            if self._offer.may_be_read and (segment := self._giving.next_segment(ready)) is not None:
                return segment
            await self._offer.changed.wait()

    async def _write(self) -> None:
        while True:
            packed = await self._packed.get()
            segment = packed.segment
            await self._channel.link.write(segment.zone, packed.data)
            self._tally.payload_bytes += segment.length
            await self._channel.send(
                SegmentWritten(
                    segment.zone,
                    segment.part.layers,
                    segment.part.tokens,
                    segment.length,
                    segment.checksum,
                )
            )
            self._free.put_nowait(packed.place)


def _pack_segment(binding: Binding, segment: Segment, data: memoryview, tally: Tally, *, checksum: bool) -> Segment:
    tally.clamped_elements += binding.pack(segment.part, data)
    digest = xxhash.xxh3_64_intdigest(data) if checksum else None
    return Segment(segment.zone, segment.part, segment.length, digest)
