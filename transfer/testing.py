"""What every backend must pass: subclass `BackendContract`, give it a `backend` fixture, run pytest.

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self) -> Backend:
            return MyBackend()

The same instance serves both sides; asyncio_mode must be auto.  Also here is what such tests are made of, for tests of
one's own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import torch
import xxhash

from common.clock import SystemClock
from common.ids import Generation, TransferId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.kv.ownership import Acknowledged, Expired, TakerFailed, Withdrawn
from common.kv.ticket import Ticket
from transfer.backends.base import Backend, Link
from transfer.errors import (
    Aborted,
    Corrupt,
    PeerLost,
    RefusalReason,
    Refused,
    Stopped,
    TimedOut,
    TransferError,
)
from transfer.limits import TransferHoldings, TransferLimits
from transfer.memory import PagedMemory
from transfer.offer import Offer
from transfer.protocol.messages import (
    WIRE_VERSION,
    Abort,
    Accepted,
    Alive,
    AllLanded,
    Open,
    SegmentWritten,
    ToSink,
    ToSource,
    ZonesFreed,
    sink_codec,
    source_codec,
)
from transfer.sink import KVSink
from transfer.sink_session import Landed
from transfer.source import KVSource

P_GENERATION, D_GENERATION = Generation(71), Generation(72)
NUM_TOKENS = 30
DEADLINE_S = 30.0
NUM_BLOCKS = 64


def example_layout(order: KVOrder = KVOrder.NHD, dtype: KVDType = KVDType.FLOAT32) -> KVLayout:
    """Small, and its 30 tokens end within a block and within a segment."""
    return KVLayout(
        model="example",
        dtype=dtype,
        block_size=4,
        order=order,
        layers=Interval(2, 6),
        heads=Interval(0, 2),
        head_dim=8,
    )


def example_limits(**changes: object) -> TransferLimits:
    """Segments of 8 tokens of one layer of `example_layout()`, three zones, and little patience."""
    base = TransferLimits(
        segment_bytes=1024, landing_zones=3, max_staging_bytes=16 << 10, progress_timeout_s=0.4, max_parked=4
    )
    return msgspec.structs.replace(base, **changes)


def peer_ticket(endpoints: tuple[str, ...], name: str = "t") -> Ticket:
    """The ticket of a hand-off between P_GENERATION and D_GENERATION."""
    return Ticket(TransferId(name), b"secret", P_GENERATION, D_GENERATION, endpoints)


def random_memory(layout: KVLayout, num_blocks: int = NUM_BLOCKS, seed: int = 0) -> PagedMemory:
    """A cache full of noise."""
    memory = PagedMemory.zeros(layout, num_blocks)
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*memory.keys, *memory.values):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return memory


def kv_of_token(memory: PagedMemory, block: int, slot: int) -> torch.Tensor:
    """[layers, 2, heads, head_dim] of one token, read the slow and obvious way."""
    at = (block, slot) if memory.layout.order is KVOrder.NHD else (block, slice(None), slot)
    return torch.stack(
        [torch.stack([key[at], value[at]]) for key, value in zip(memory.keys, memory.values, strict=True)]
    )


@dataclass
class Mesh:
    """A source with noise and a sink with zeros over one backend."""

    backend: Backend
    source: KVSource
    sink: KVSink
    given: PagedMemory
    taken: PagedMemory
    endpoints: tuple[str, ...]
    limits: TransferLimits

    def ticket(self, name: str = "t", **changes: object) -> Ticket:
        """The right ticket, or one with some fields changed."""
        return msgspec.structs.replace(peer_ticket(self.endpoints, name), **changes)

    def offer(self, name: str = "t", *, layers: int = 4, deadline_s: float = DEADLINE_S, first: int = 0) -> Offer:
        """Blocks 63 - first, 62 - first, … with the first `layers` layers ready."""
        blocks = range(NUM_BLOCKS - 1 - first, NUM_BLOCKS - 9 - first, -1)
        offer = self.source.offer(self.ticket(name), blocks, NUM_TOKENS, deadline_s)
        make_ready(offer, 0, layers)
        return offer

    def take(self, name: str = "t", first: int = 0, **changes: Any) -> "asyncio.Task[Landed]":
        """Start a take into the blocks first, first + 1, …"""
        work = self.sink.take(self.ticket(name, **changes), range(first, first + 8), NUM_TOKENS, DEADLINE_S)
        return asyncio.get_running_loop().create_task(work)

    def assert_arrived(self, first: int = 0) -> None:
        """Every token of the hand-off is where it should be, and the rest of its last block is untouched."""
        for token in range(32):
            block, slot = divmod(token, 4)
            there = kv_of_token(self.taken, first + block, slot)
            wanted = kv_of_token(self.given, NUM_BLOCKS - 1 - first - block, slot)
            assert torch.equal(there, wanted if token < NUM_TOKENS else torch.zeros_like(there)), token

    async def idle(self) -> None:
        """Wait until neither side holds anything."""
        await eventually(lambda: self.source.holdings() == self.sink.holdings() == TransferHoldings())

    async def assert_works(self) -> None:
        """A fresh hand-off goes through: whatever happened before harmed nobody else."""
        offer = self.offer("fresh", first=24)
        await self.take("fresh", first=24)
        assert await offer.ended() == Acknowledged(4 * NUM_TOKENS * 128)
        self.assert_arrived(first=24)


@asynccontextmanager
async def mesh(
    backend: Backend, layout: KVLayout | None = None, limits: TransferLimits | None = None
) -> AsyncIterator[Mesh]:
    """A `Mesh` that must be idle in the end, and is closed."""
    layout, limits = layout or example_layout(), limits or example_limits()
    given, taken = random_memory(layout), PagedMemory.zeros(layout, NUM_BLOCKS)
    source = KVSource(given, P_GENERATION, limits, SystemClock(), [backend])
    sink = KVSink(taken, D_GENERATION, limits, SystemClock(), [backend])
    try:
        made = Mesh(backend, source, sink, given, taken, await source.start(), limits)
        yield made
        await made.idle()
    finally:
        await sink.close()
        await source.close()


def make_ready(offer: Offer, start: int, stop: int, num_tokens: int = NUM_TOKENS) -> None:
    """All tokens of layers number start…stop of the offer are computed."""
    for layer in range(2 + start, 2 + stop):
        offer.layer_ready(layer, num_tokens)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition()`; a test that waits in vain is ended by its own limit."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - conditions are about what others hold, which nobody signals
            await asyncio.sleep(0.002)


class TakerPuppet:
    """A sink that says what it is told. It gives no sign of life of its own."""

    def __init__(self, link: Link, made: Mesh) -> None:
        self.link = link
        self._mesh = made
        self._zones = [bytearray(made.limits.segment_bytes) for _ in range(made.limits.landing_zones)]

    def open(self, **changes: object) -> Open:
        """The right Open for `Mesh.offer()`, or one with some fields changed."""
        right = Open(
            wire_version=WIRE_VERSION,
            ticket=self._mesh.ticket(),
            layout=self._mesh.taken.layout,
            num_tokens=NUM_TOKENS,
            zones=len(self._zones),
            segment_bytes=self._mesh.limits.segment_bytes,
            descriptor=self.link.register([memoryview(zone) for zone in self._zones]),
            checksum=True,
            patience_s=DEADLINE_S,
        )
        return msgspec.structs.replace(right, **changes)

    async def say(self, message: ToSource) -> None:
        """Send one message."""
        await self.link.send(source_codec().encode(message))

    async def hear(self) -> ToSink:
        """The next message that is not Alive."""
        while isinstance(message := sink_codec().decode(await self.link.receive()), Alive):
            pass
        return message


class SourcePuppet:
    """A source that says what it is told, to the one taker that comes."""

    def __init__(self) -> None:
        self._links: asyncio.Queue[Link] = asyncio.Queue()
        self.link: Link

    async def meet(self) -> Open:
        """Wait for the taker and hear its Open."""
        self.link = await self._links.get()
        message = source_codec().decode(await self.link.receive())
        assert isinstance(message, Open)
        self.link.attach(message.descriptor)
        return message

    async def say(self, message: ToSink) -> None:
        """Send one message."""
        await self.link.send(sink_codec().encode(message))

    async def write(self, segment: SegmentWritten) -> None:
        """Write `length` bytes of 7 and announce them as told; 0 as checksum means the right one."""
        data = bytes([7]) * segment.length
        await self.link.write(segment.zone, memoryview(data))
        right = xxhash.xxh3_64_intdigest(data)
        await self.say(msgspec.structs.replace(segment, checksum=right) if segment.checksum == 0 else segment)

    @classmethod
    @asynccontextmanager
    async def listening(cls, backend: Backend) -> AsyncIterator[tuple["SourcePuppet", tuple[str, ...]]]:
        """A puppet and its endpoints."""
        puppet = cls()
        listener = await backend.listen(puppet._links.put_nowait)
        try:
            yield puppet, (listener.endpoint,)
        finally:
            await listener.close()
            if hasattr(puppet, "link"):
                await puppet.link.close()


def segment(zone: int = 0, layer: int = 2, start: int = 0, stop: int = 8, **changes: object) -> SegmentWritten:
    """One layer of some tokens of `example_layout()`."""
    right = SegmentWritten(zone, Interval(layer, layer + 1), Interval(start, stop), (stop - start) * 128, 0)
    return msgspec.structs.replace(right, **changes)


NONSENSE_FROM_SOURCE: dict[str, tuple[ToSink, ...]] = {
    "before accepted": (segment(),),
    "accepted twice": (Accepted(example_layout()), Accepted(example_layout())),
    "accepted another layout": (Accepted(example_layout(KVOrder.HND)),),
    "twice": (Accepted(example_layout()), segment(), segment(zone=1)),
    "overlapping": (Accepted(example_layout()), segment(), segment(zone=1, start=7, stop=9)),
    "layer outside": (Accepted(example_layout()), segment(layer=6)),
    "tokens outside": (Accepted(example_layout()), segment(start=24, stop=32)),
    "empty": (Accepted(example_layout()), segment(stop=1, tokens=Interval(3, 3))),
    "length": (Accepted(example_layout()), segment(length=512)),
    "no checksum": (Accepted(example_layout()), segment(checksum=None)),
    "checksum": (Accepted(example_layout()), segment(checksum=1)),
}
NONSENSE_FROM_TAKER: dict[str, tuple[ToSource, ...]] = {
    "all landed at once": (AllLanded(),),
    "frees what is free": (ZonesFreed((2,)),),
    "frees what is not there": (ZonesFreed((3,)),),
}


class BackendContract:
    """Bytes arrive exactly; every end is clean, typed, and harms nobody else."""

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test."""
        raise NotImplementedError("a subclass of BackendContract gives the backend")

    # ------------------------------------------------------------ what should work

    @pytest.mark.parametrize("order", list(KVOrder))
    @pytest.mark.parametrize("dtype", [KVDType.FLOAT32, KVDType.BFLOAT16])
    @pytest.mark.parametrize("checksum", [True, False])
    async def test_bytes_arrive_exactly(self, backend: Backend, order: KVOrder, dtype: KVDType, checksum: bool) -> None:
        """Through permuted blocks, in both memory orders, and counted."""
        layout = example_layout(order, dtype)
        async with mesh(backend, layout, example_limits(checksum=checksum)) as made:
            offer = made.offer()
            landed = await made.sink.take(made.ticket(), range(8), NUM_TOKENS, DEADLINE_S)
            made.assert_arrived()
            assert await offer.ended() == Acknowledged(landed.payload_bytes)
            assert landed.payload_bytes == NUM_TOKENS * layout.token_bytes
            assert made.source.payload_bytes_sent == made.sink.payload_bytes_received == landed.payload_bytes
            assert 0 < landed.first_byte_s <= landed.last_byte_s <= landed.seconds

    async def test_a_layer_leaves_as_soon_as_it_is_computed(self, backend: Backend) -> None:
        """In chunks of tokens and layer by layer, the sink has each part before the next is ready."""
        async with mesh(backend) as made:
            offer, take = made.offer(layers=0), made.take()
            for chunk, received in ((13, 0), (NUM_TOKENS, 4 * 13 * 128)):
                for index in range(4):
                    offer.layer_ready(2 + index, chunk)
                    start = 0 if chunk == 13 else 13
                    arrived = received + (index + 1) * (chunk - start) * 128
                    await eventually(lambda arrived=arrived: made.sink.payload_bytes_received == arrived)  # type: ignore[misc]
            await take
            assert isinstance(await offer.ended(), Acknowledged)
            made.assert_arrived()

    async def test_many_at_once(self, backend: Backend) -> None:
        """More hand-offs than staging memory has room for."""
        async with mesh(backend) as made:
            names = [str(number) for number in range(7)]
            takes = [made.take(name, first=8 * index) for index, name in enumerate(names)]
            offers = [made.offer(name, first=8 * index) for index, name in enumerate(names)]
            await asyncio.gather(*takes)
            for index, offer in enumerate(offers):
                assert isinstance(await offer.ended(), Acknowledged)
                made.assert_arrived(first=8 * index)

    async def test_a_taker_may_come_before_its_offer(self, backend: Backend) -> None:
        """It is parked, and outlives the progress timeout there."""
        async with mesh(backend) as made:
            take = made.take()
            await eventually(lambda: made.source.holdings().parked == 1)
            await asyncio.sleep(1.5 * made.limits.progress_timeout_s)
            made.offer()
            await take
            made.assert_arrived()

    async def test_a_source_may_compute_for_long(self, backend: Backend) -> None:
        """Longer than the progress timeout: it shows signs of life."""
        async with mesh(backend) as made:
            offer, take = made.offer(layers=1), made.take()
            await asyncio.sleep(1.5 * made.limits.progress_timeout_s)
            make_ready(offer, 1, 4)
            await take
            made.assert_arrived()

    # ------------------------------------------------------------ refusals

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"secret": b"guess"}, RefusalReason.SECRET),
            ({"prefill_generation": Generation(1)}, RefusalReason.GENERATION),
        ],
    )
    async def test_a_wrong_ticket_is_refused(
        self, backend: Backend, change: dict[str, Any], reason: RefusalReason
    ) -> None:
        """And the right one is served afterwards."""
        async with mesh(backend) as made:
            offer = made.offer()
            with pytest.raises(Refused) as refused:
                await made.take(**change)
            assert refused.value.reason is reason
            await made.take()
            assert isinstance(await offer.ended(), Acknowledged)

    @pytest.mark.parametrize(
        ("field", "value"),
        [("block_size", 8), ("order", KVOrder.HND), ("dtype", KVDType.FLOAT16), ("model", "other")],
    )
    async def test_another_layout_is_refused_by_name(self, backend: Backend, field: str, value: object) -> None:
        """The refusal names the field and both values."""
        async with mesh(backend) as made:
            offer = made.offer()
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            theirs = msgspec.structs.replace(example_layout(), **{field: value})
            await puppet.say(puppet.open(layout=theirs))
            answer = await puppet.hear()
            await puppet.link.close()
            assert getattr(answer, "field", None) == field
            ours = getattr(example_layout(), field)
            assert repr(value) in answer.message  # type: ignore[union-attr]
            assert repr(ours) in answer.message  # type: ignore[union-attr]
            offer.withdraw("test")

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"wire_version": 99}, "wire_version"),
            ({"num_tokens": 29}, "num_tokens"),
            ({"segment_bytes": 100}, "segment_bytes"),
        ],
    )
    async def test_a_request_that_does_not_fit_is_refused(
        self, backend: Backend, change: dict[str, object], field: str
    ) -> None:
        """By the name of what does not fit."""
        async with mesh(backend) as made:
            made.offer()
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            await puppet.say(puppet.open(**change))
            assert getattr(await puppet.hear(), "field", None) == field
            await puppet.link.close()
            await made.take()

    async def test_one_taker_only(self, backend: Backend) -> None:
        """A second one is refused, during the hand-off and after it."""
        async with mesh(backend) as made:
            offer, take = made.offer(layers=1), made.take()
            await eventually(lambda: made.sink.payload_bytes_received > 0)
            with pytest.raises(Refused) as refused:
                await made.take(first=8)
            assert refused.value.reason is RefusalReason.ALREADY_TAKEN
            make_ready(offer, 1, 4)
            await take
            await offer.ended()
            with pytest.raises(Refused) as refused:
                await made.take(first=8)
            assert refused.value.reason is RefusalReason.ENDED
            made.assert_arrived()

    async def test_parked_takers_are_bounded(self, backend: Backend) -> None:
        """In number and in time."""
        async with mesh(backend, limits=example_limits(max_parked=1, max_parked_s=0.5)) as made:
            patient = made.take("patient")
            await eventually(lambda: made.source.holdings().parked == 1)
            for take in (made.take("late"), patient):
                with pytest.raises(Refused) as refused:
                    await take
                assert refused.value.reason is RefusalReason.UNKNOWN_TICKET

    async def test_a_new_generation_ends_the_old_ones_hand_offs(self, backend: Backend) -> None:
        """Offers, accepted takers and parked ones at the source."""
        async with mesh(backend) as made:
            offered, taken = made.offer("offered"), made.offer("taken", layers=1, first=8)
            takes = [made.take("taken"), made.take("parked", first=8)]
            await eventually(lambda: made.sink.payload_bytes_received > 0 and made.source.holdings().parked == 1)
            made.source.refuse_all(Generation(5))
            assert isinstance(await offered.ended(), Withdrawn)
            assert isinstance(await taken.ended(), Withdrawn)
            for outcome in await asyncio.gather(*takes, return_exceptions=True):
                assert isinstance(outcome, Aborted | PeerLost | Refused)
            with pytest.raises(Refused):
                made.offer()
            with pytest.raises(Refused):
                await made.take()

    async def test_a_rejoined_sink_ends_its_takes(self, backend: Backend) -> None:
        """And refuses tickets of its former life."""
        async with mesh(backend) as made:
            offer, take = made.offer(layers=1), made.take()
            await eventually(lambda: made.sink.payload_bytes_received > 0)
            made.sink.rejoin(Generation(5))
            with pytest.raises(Stopped):
                await take
            assert isinstance(await offer.ended(), TakerFailed)
            with pytest.raises(Refused):
                await made.take()

    # ------------------------------------------------------------ cancel, withdraw, expire: at every stage

    @pytest.mark.parametrize("layers", [0, 1, 2, 3])
    async def test_a_cancelled_take_writes_nothing_more(self, backend: Backend, layers: int) -> None:
        """After so many layers have landed; the source learns of it."""
        async with mesh(backend) as made:
            offer, take = made.offer(layers=layers), made.take()
            await eventually(lambda: offer.is_taken and made.sink.payload_bytes_received == layers * NUM_TOKENS * 128)
            make_ready(offer, layers, 4)
            take.cancel()
            with pytest.raises(asyncio.CancelledError):
                await take
            before = torch.stack([*made.taken.keys, *made.taken.values]).clone()
            assert isinstance(await offer.ended(), TakerFailed)
            await made.idle()
            assert torch.equal(torch.stack([*made.taken.keys, *made.taken.values]), before)
            await made.assert_works()

    async def test_a_parked_taker_may_be_cancelled(self, backend: Backend) -> None:
        """Its place is free again."""
        async with mesh(backend) as made:
            take = made.take()
            await eventually(lambda: made.source.holdings().parked == 1)
            take.cancel()
            await asyncio.gather(take, return_exceptions=True)
            await eventually(lambda: made.source.holdings().parked == 0)

    @pytest.mark.parametrize("layers", [0, 1, 2, 3])
    async def test_a_withdrawn_offer_ends_the_take(self, backend: Backend, layers: int) -> None:
        """After so many layers have landed."""
        async with mesh(backend) as made:
            offer, take = made.offer(layers=layers), made.take()
            await eventually(lambda: offer.is_taken and made.sink.payload_bytes_received == layers * NUM_TOKENS * 128)
            make_ready(offer, layers, 4)
            offer.withdraw("test")
            assert await offer.ended() == Withdrawn("test")
            with pytest.raises((Aborted, PeerLost)):
                await take
            await made.assert_works()

    @pytest.mark.parametrize("is_taken", [True, False])
    async def test_an_offer_expires(self, backend: Backend, is_taken: bool) -> None:
        """With a taker or without."""
        async with mesh(backend) as made:
            offer = made.offer(layers=1, deadline_s=0.2)
            take = made.take() if is_taken else None
            assert await offer.ended() == Expired()
            if take is not None:
                with pytest.raises((Aborted, PeerLost)):
                    await take

    async def test_a_take_has_a_deadline(self, backend: Backend) -> None:
        """However alive the source is."""
        async with mesh(backend) as made:
            offer = made.offer(layers=1)
            with pytest.raises(TimedOut):
                await made.sink.take(made.ticket(), range(8), NUM_TOKENS, 0.3)
            assert isinstance(await offer.ended(), TakerFailed)

    async def test_closing_ends_everything(self, backend: Backend) -> None:
        """On both sides, whatever is under way."""
        async with mesh(backend) as made:
            offer, take = made.offer(layers=1), made.take()
            await eventually(lambda: made.sink.payload_bytes_received > 0)
            await made.source.close()
            assert isinstance(await offer.ended(), Withdrawn)
            with pytest.raises((Aborted, PeerLost)):
                await take
            with pytest.raises(PeerLost):
                await made.take("later")
            await made.sink.close()
            with pytest.raises(Stopped):
                await made.take("closed")

    # ------------------------------------------------------------ peers that die, hang or talk nonsense

    @pytest.mark.parametrize("heard", [None, 0, 1, 2, 3])
    async def test_a_taker_may_die_at_any_point(self, backend: Backend, heard: int | None) -> None:
        """None: before it said anything; n: after it has heard so many messages."""
        async with mesh(backend) as made:
            offer = made.offer()
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            if heard is not None:
                await puppet.say(puppet.open())
                for _ in range(heard):
                    await puppet.hear()
                await eventually(lambda: offer.is_taken)
            await puppet.link.close()
            if heard is None:
                await made.take()
            assert isinstance(await offer.ended(), Acknowledged if heard is None else TakerFailed)
            await made.assert_works()

    @pytest.mark.parametrize("segments", [None, 0, 1, 2])
    async def test_a_source_may_die_at_any_point(self, backend: Backend, segments: int | None) -> None:
        """None: instead of accepting; n: after so many segments. The take ends at once and typed."""
        async with mesh(backend) as made, SourcePuppet.listening(backend) as (puppet, endpoints):
            take = made.take(endpoints=endpoints)
            await puppet.meet()
            if segments is not None:
                await puppet.say(Accepted(example_layout()))
                for zone in range(segments):
                    await puppet.write(segment(zone=zone, layer=2 + zone))
            await puppet.link.close()
            with pytest.raises(PeerLost):
                await take
            await made.assert_works()

    async def test_nobody_listens(self, backend: Backend) -> None:
        """A source that is gone, and endpoints of backends that the sink does not have."""
        async with mesh(backend) as made, SourcePuppet.listening(backend) as (_, gone):
            pass
        async with mesh(backend) as made:
            for endpoints in (gone, ("carrier-pigeon://p0",), ()):
                with pytest.raises(PeerLost):
                    await made.take(endpoints=endpoints)

    async def test_a_clogged_taker_harms_nobody(self, backend: Backend) -> None:
        """It neither reads nor says anything: it is lost after the progress timeout, and others go on meanwhile."""
        async with mesh(backend) as made:
            offer = made.offer()
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            await puppet.say(puppet.open())
            await made.assert_works()
            end = await offer.ended()
            assert isinstance(end, TakerFailed)
            assert "no sign of life" in end.reason
            await puppet.link.close()

    async def test_a_taker_gets_no_more_than_its_credit(self, backend: Backend) -> None:
        """It lives, but frees no zone."""
        async with mesh(backend) as made:
            offer = made.offer(deadline_s=1.0)
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            await puppet.say(puppet.open())
            assert isinstance(await puppet.hear(), Accepted)
            for _ in range(made.limits.landing_zones):
                assert isinstance(await puppet.hear(), SegmentWritten)
            for _ in range(8):
                await puppet.say(Alive())
                await asyncio.sleep(0.05)
            assert made.source.payload_bytes_sent == made.limits.landing_zones * made.limits.segment_bytes
            offer.withdraw("test")
            assert isinstance(await puppet.hear(), Abort)
            await puppet.link.close()

    async def test_a_silent_source_is_lost(self, backend: Backend) -> None:
        """After the progress timeout, typed."""
        async with mesh(backend) as made, SourcePuppet.listening(backend) as (puppet, endpoints):
            take = made.take(endpoints=endpoints)
            await puppet.meet()
            with pytest.raises(TimedOut):
                await take

    async def test_a_taker_that_says_nothing_is_lost(self, backend: Backend) -> None:
        """It cannot hold a connection."""
        async with mesh(backend) as made:
            link = await backend.connect(made.endpoints[0])
            await eventually(lambda: made.source.connections_broken == 1)
            await link.close()

    @pytest.mark.parametrize("case", NONSENSE_FROM_SOURCE)
    async def test_nonsense_from_a_source(self, backend: Backend, case: str) -> None:
        """The take ends as Corrupt, the source is told, and nobody else is harmed."""
        async with mesh(backend) as made, SourcePuppet.listening(backend) as (puppet, endpoints):
            take = made.take(endpoints=endpoints)
            await puppet.meet()
            for message in NONSENSE_FROM_SOURCE[case]:
                try:
                    await (puppet.write(message) if isinstance(message, SegmentWritten) else puppet.say(message))
                except TransferError:
                    break
            with pytest.raises(Corrupt):
                await take
            await made.assert_works()

    async def test_a_write_outside_the_zones(self, backend: Backend) -> None:
        """More zones than there are."""
        async with mesh(backend) as made, SourcePuppet.listening(backend) as (puppet, endpoints):
            take = made.take(endpoints=endpoints)
            await puppet.meet()
            await puppet.say(Accepted(example_layout()))
            try:
                await puppet.write(segment(zone=3))
            except Corrupt:
                await puppet.link.close()
            with pytest.raises((Corrupt, PeerLost)):
                await take
            await made.assert_works()

    @pytest.mark.parametrize("case", NONSENSE_FROM_TAKER)
    async def test_nonsense_from_a_taker(self, backend: Backend, case: str) -> None:
        """Its hand-off ends, with the reason in the offer's end."""
        async with mesh(backend) as made:
            offer = made.offer(layers=0)
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            await puppet.say(puppet.open())
            for message in NONSENSE_FROM_TAKER[case]:
                await puppet.say(message)
            assert isinstance(await offer.ended(), TakerFailed)
            assert isinstance(await puppet.hear(), Accepted)
            assert isinstance(await puppet.hear(), Abort)
            await puppet.link.close()
            await made.assert_works()

    @pytest.mark.parametrize("junk", [b"", b"\x00", b"junk", b"\x92\x01\x81\xa4type\xa4None", b"\x93" * 60_000])
    async def test_junk_instead_of_a_message(self, backend: Backend, junk: bytes) -> None:
        """From a taker and from a source."""
        async with mesh(backend) as made, SourcePuppet.listening(backend) as (puppet, endpoints):
            link = await backend.connect(made.endpoints[0])
            await link.send(junk)
            take = made.take(endpoints=endpoints)
            await puppet.meet()
            await puppet.link.send(junk)
            with pytest.raises(Corrupt):
                await take
            await eventually(lambda: made.source.connections_broken == 1)
            await link.close()
            await made.assert_works()

    async def test_connections_are_bounded(self, backend: Backend) -> None:
        """One more than allowed is closed at once, and counted."""
        async with mesh(backend, limits=example_limits(max_connections=2)) as made:
            links = [await backend.connect(made.endpoints[0]) for _ in range(3)]
            await eventually(lambda: made.source.takers_refused == 1)
            for link in links:
                await link.close()
