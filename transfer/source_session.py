"""P's shell for one accepted taker: pack in a thread while the segment before it is on the wire."""

import asyncio
from collections.abc import Callable
from functools import partial

import xxhash

from common.kv.ownership import ReadBegan, ReadEnded
from transfer.binding import Binding
from transfer.channel import Channel
from transfer.errors import Stopped
from transfer.limits import PACK_BUFFERS
from transfer.offer import Offer
from transfer.protocol.admission import Serve
from transfer.protocol.giving import Giving, Segment
from transfer.protocol.messages import Accepted, Open, SegmentWritten, ToSink, ToSource
from transfer.waiting import race
from transfer.workshop import Workshop


class GivingSession:
    """Serves one Open. When `run` has ended, in whatever way, nothing reads the offer's blocks."""

    def __init__(
        self,
        channel: Channel[ToSource, ToSink],
        offer: Offer,
        request: Open,
        verdict: Serve,
        workshop: Workshop,
        on_sent: Callable[[int], None],
    ) -> None:
        self._channel = channel
        self._offer = offer
        self._request = request
        self._plan = verdict.plan
        self._workshop = workshop
        self._on_sent = on_sent
        self._giving = Giving(verdict.plan, offer.num_tokens, request.zones, verdict.segment_bytes)
        self._empty: asyncio.Queue[bytearray] = asyncio.Queue()
        self._packed: asyncio.Queue[tuple[Segment, bytearray]] = asyncio.Queue()

    async def run(self) -> None:
        """Return when D holds everything; raises a TransferError when it never will."""
        self._channel.link.attach(self._request.descriptor)
        await self._channel.send(Accepted(self._workshop.memory.layout))
        await race(self._workshop.tasks, "give", self._listen, self._move, self._until_over)

    async def _listen(self) -> None:
        while not self._giving.handle(await self._channel.next()):
            self._offer.changed.wake()

    async def _until_over(self) -> None:
        raise Stopped(f"the offer ended before everything had landed: {await self._offer.over()!r}")

    async def _move(self) -> None:
        async with self._workshop.staging.lend(PACK_BUFFERS) as buffers:
            for buffer in buffers:
                self._empty.put_nowait(buffer)
            await race(self._workshop.tasks, "move", self._pack, self._write)

    async def _pack(self) -> None:
        binding = await self._workshop.workers.run(
            partial(Binding, self._plan, self._workshop.memory, self._offer.blocks, self._offer.num_tokens)
        )
        while True:
            buffer = await self._empty.get()
            segment = await self._next_segment()
            self._offer.apply(ReadBegan())
            try:
                packed = await self._workshop.workers.run(
                    partial(_pack_segment, binding, segment, buffer, checksum=self._request.checksum)
                )
            finally:
                self._offer.apply(ReadEnded())
            self._packed.put_nowait((packed, buffer))

    async def _next_segment(self) -> Segment:
        while True:
            if self._offer.may_be_read and (segment := self._giving.next_segment(self._offer.ready)) is not None:
                return segment
            await self._offer.changed.wait()

    async def _write(self) -> None:
        while True:
            segment, buffer = await self._packed.get()
            await self._channel.link.write(segment.zone, memoryview(buffer)[: segment.length])
            self._on_sent(segment.length)
            await self._channel.send(
                SegmentWritten(
                    segment.zone,
                    segment.part.layers,
                    segment.part.tokens,
                    segment.length,
                    segment.checksum,
                )
            )
            self._empty.put_nowait(buffer)


def _pack_segment(binding: Binding, segment: Segment, buffer: bytearray, *, checksum: bool) -> Segment:
    binding.pack(segment.part, buffer)
    digest = xxhash.xxh3_64_intdigest(memoryview(buffer)[: segment.length]) if checksum else None
    return Segment(segment.zone, segment.part, segment.length, digest)
