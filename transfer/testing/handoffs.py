"""The part of the contract with honest peers: what works, what is refused, and how a hand-off is called off."""

import asyncio
from itertools import chain
from typing import Any

import msgspec
import pytest
import torch

from common.ids import Generation
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from common.kv.ownership import Acknowledged, Expired, TakerFailed, Withdrawn
from transfer.backends.base import Backend
from transfer.errors import (
    Aborted,
    PeerLost,
    RefusalReason,
    Refused,
    Stopped,
    TimedOut,
)
from transfer.plan import region_of
from transfer.protocol.messages import AllLanded, ProbeAccepted, ProbeWritten
from transfer.protocol.versions import VersionRange
from transfer.testing.mesh import (
    DEADLINE_S,
    NUM_BLOCKS,
    NUM_TOKENS,
    eventually,
    example_layout,
    example_limits,
    kv_of_token,
    make_ready,
    mesh,
)
from transfer.testing.puppets import TakerPuppet


class HandoffContract:
    """Bytes arrive exactly; refusals and cancels are clean and typed."""

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

    @pytest.mark.parametrize(
        "change",
        [
            {"block_size": 7, "order": KVOrder.HND},
            {"dtype": KVDType.FLOAT16, "packed": True},
            {"layers": Interval(3, 5), "heads": Interval(1, 2)},
        ],
        ids=["blocks and order", "type and packing", "a part of layers and heads"],
    )
    async def test_layouts_may_differ(self, backend: Backend, change: dict[str, Any]) -> None:
        """What arrives is what was sent, wherever and however it lies."""
        theirs = msgspec.structs.replace(example_layout(), **change)
        async with mesh(backend, target=theirs) as made:
            offer = made.offer()
            landed = await made.sink.take(made.ticket(), range(8), NUM_TOKENS, DEADLINE_S)
            assert await offer.ended() == Acknowledged(landed.payload_bytes)
            assert landed.payload_bytes == NUM_TOKENS * theirs.token_bytes
            layers = slice(theirs.layers.start - 2, theirs.layers.stop - 2)
            heads = slice(theirs.heads.start, theirs.heads.stop)
            for token in range(NUM_TOKENS):
                there = kv_of_token(made.taken, *divmod(token, theirs.block_size))
                block, slot = divmod(token, 4)
                wanted = kv_of_token(made.given, NUM_BLOCKS - 1 - block, slot)[layers, :, heads]
                assert torch.equal(there, wanted.to(there.dtype)), token

    async def test_what_a_cast_clamps_is_counted_where_it_is_cast(self, backend: Backend) -> None:
        """At the source when the target is narrower."""
        narrow = msgspec.structs.replace(example_layout(), dtype=KVDType.FLOAT16)
        async with mesh(backend, target=narrow) as made:
            made.given.parts[0][0][NUM_BLOCKS - 1, 0, 0, :3] = 1e6
            offer = made.offer()
            await made.take()
            assert isinstance(await offer.ended(), Acknowledged)
            assert (made.source.clamped_elements, made.sink.clamped_elements) == (3, 0)

    async def test_a_self_test_measures_the_link(self, backend: Backend) -> None:
        """While a hand-off waits, and leaves nothing behind."""
        async with mesh(backend) as made:
            offer, take = made.offer(layers=1), made.take()
            (figures,) = (await made.sink.meet(made.endpoints)).figures
            assert figures.scheme == backend.scheme
            assert min(figures.bytes_per_s, figures.round_trip_s) > 0
            make_ready(offer, 1, 4)
            await take
            made.assert_arrived()

    async def test_a_self_test_tells_nothing_of_a_hand_off(self, backend: Backend) -> None:
        """It needs no ticket, so it must not send what those who have one were given."""
        async with mesh(backend) as made:
            await made.assert_works()  # which leaves KV in whatever memory it was packed in
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            for zone in puppet.zones:
                zone.view[:] = b"\xaa" * len(zone.view)
            await puppet.say(puppet.probe(len(puppet.zones)))
            assert isinstance(await puppet.hear(), ProbeAccepted)
            for _ in puppet.zones:
                assert isinstance(await puppet.hear(), ProbeWritten)
            assert [bytes(zone.view) for zone in puppet.zones] == [bytes(made.limits.segment_bytes)] * len(puppet.zones)
            await puppet.say(AllLanded())
            await puppet.link.close()

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
        [("head_dim", 4), ("heads", Interval(0, 3)), ("layers", Interval(0, 6)), ("model", "other")],
    )
    async def test_another_layout_is_refused_by_name(self, backend: Backend, field: str, value: object) -> None:
        """The refusal names the field and both values."""
        async with mesh(backend) as made:
            offer = made.offer()
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            theirs = msgspec.structs.replace(example_layout(), **{field: value})
            await puppet.say(puppet.open(layout=theirs, region=region_of(theirs)))
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
            ({"versions": VersionRange(98, 99)}, "versions"),
            ({"num_tokens": 29}, "num_tokens"),
            ({"max_segment_bytes": 100}, "segment_bytes"),
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
            before = torch.stack([*chain(*made.taken.parts)]).clone()
            assert isinstance(await offer.ended(), TakerFailed)
            await made.idle()
            assert torch.equal(torch.stack([*chain(*made.taken.parts)]), before)
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
            with pytest.raises(Stopped):
                made.offer("later")
            await made.sink.close()
            with pytest.raises(Stopped):
                await made.take("closed")
