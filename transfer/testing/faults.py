"""The part of the contract with peers that die, hang or talk nonsense."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from common.ids import TransferId
from common.kv.ownership import Acknowledged, TakerFailed
from transfer import probe
from transfer.backends.base import Backend
from transfer.errors import (
    Aborted,
    Corrupt,
    PeerLost,
    TimedOut,
    TransferError,
)
from transfer.protocol.messages import (
    MAX_PROBE_SEGMENTS,
    Abort,
    Accepted,
    Alive,
    ProbeAccepted,
    ProbeWritten,
    Refusal,
    SegmentWritten,
    ZonesFreed,
    sink_codec,
    source_codec,
)
from transfer.testing.mesh import (
    Mesh,
    eventually,
    example_limits,
    mesh,
)
from transfer.testing.puppets import (
    NONSENSE_FROM_SOURCE,
    NONSENSE_FROM_TAKER,
    SourcePuppet,
    TakerPuppet,
    accepted,
    bent,
    segment,
)


class FaultContract:
    """Whatever the peer does, the end is typed, nothing is left, and nobody else is harmed."""

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
                await puppet.say(accepted())
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
            await puppet.say(accepted())
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

    @pytest.mark.parametrize(
        "path", [("region", "layers"), ("region", "heads"), ("capabilities", "layout", "layers")], ids="-".join
    )
    async def test_a_number_beyond_a_machine_word_from_a_taker(self, backend: Backend, path: Sequence[str]) -> None:
        """It is told what is wrong, and the offer waits for another."""
        async with mesh(backend) as made:
            offer = made.offer()
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            await puppet.link.send(bent(source_codec().encode(puppet.open()), path, [0, 1 << 63]))
            answer = await puppet.hear()
            assert isinstance(answer, Abort)
            assert "not an interval" in answer.reason
            await puppet.link.close()
            assert not offer.is_taken
            await made.take()

    async def test_a_number_beyond_a_machine_word_from_a_source(self, backend: Backend) -> None:
        """The take ends as Corrupt."""
        async with mesh(backend) as made, SourcePuppet.listening(backend) as (puppet, endpoints):
            take = made.take(endpoints=endpoints)
            await puppet.meet()
            await puppet.say(accepted())
            await puppet.link.send(bent(sink_codec().encode(segment()), ("tokens",), [0, 1 << 63]))
            with pytest.raises(Corrupt):
                await take
            await made.assert_works()

    async def test_words_without_end_from_a_taker(self, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
        """What it said is not repeated whole, neither to it nor in the log."""
        endless = "\x01" * 40_000  # four times as long where it is quoted
        async with mesh(backend) as made:
            offer = made.offer()
            stranger = made.ticket(transfer=TransferId(endless))
            layout = msgspec.structs.replace(made.taken.layout, model=endless)
            cases: tuple[dict[str, object] | None, ...] = (
                None,
                {"ticket": stranger, "patience_s": 0.0},
                {"layout": layout},
            )
            for changes in cases:
                puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
                await puppet.say(Abort(endless) if changes is None else puppet.open(**changes))
                answer = await puppet.hear()
                assert isinstance(answer, Abort | Refusal)
                assert len(answer.reason if isinstance(answer, Abort) else answer.message) < 4000
                await puppet.link.close()
            offer.withdraw("test")
        assert all(len(line) < 4000 for line in caplog.messages)

    async def test_words_without_end_from_a_source(self, backend: Backend) -> None:
        """Its last ones."""
        async with mesh(backend) as made, SourcePuppet.listening(backend) as (puppet, endpoints):
            take = made.take(endpoints=endpoints)
            await puppet.meet()
            await puppet.say(Abort("x" * 60_000))
            with pytest.raises(Aborted) as aborted:
                await take
            assert len(str(aborted.value)) < 4000

    async def test_connections_are_bounded(self, backend: Backend) -> None:
        """One more than allowed is closed at once, and counted."""
        async with mesh(backend, limits=example_limits(max_connections=2)) as made:
            links = [await backend.connect(made.endpoints[0]) for _ in range(3)]
            await eventually(lambda: made.source.takers_refused == 1)
            for link in links:
                await link.close()

    # ------------------------------------------------------------ self-tests

    async def test_self_tests_that_go_nowhere_stop_nobody(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More than a source has staging memory for, of sinks that live and free no zone. Hand-offs go on meanwhile,
        and another self-test has its turn."""
        monkeypatch.setattr(probe, "SEGMENT_S", 0.2)
        async with mesh(backend) as made, _dawdlers(backend, made, 20):
            await made.assert_works()
            assert len((await made.sink.meet(made.endpoints)).figures) == 1

    async def test_a_self_test_has_a_deadline(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """At the source too, however steadily the sink takes in what comes."""
        monkeypatch.setattr(probe, "MEASURE_S", 0.3)
        async with mesh(backend) as made:
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            await puppet.say(puppet.probe(MAX_PROBE_SEGMENTS))
            with suppress(PeerLost):
                while not isinstance(message := await puppet.hear(), Abort):
                    await asyncio.sleep(0.02)
                    if isinstance(message, ProbeWritten):
                        await puppet.say(ZonesFreed((message.zone,)))
            await puppet.link.close()
            assert "the self-test took longer than 0.3 s" in caplog.text


@asynccontextmanager
async def _dawdlers(backend: Backend, made: Mesh, count: int) -> AsyncIterator[None]:
    """Takers that ask for self-tests, live, and take in nothing."""
    puppets, living = list[TakerPuppet](), list[asyncio.Task[None]]()
    try:
        for _ in range(count):
            puppet = TakerPuppet(await backend.connect(made.endpoints[0]), made)
            puppets.append(puppet)
            await puppet.say(puppet.probe(2 * len(puppet.zones)))
            assert isinstance(await puppet.hear(), ProbeAccepted)
            living.append(asyncio.get_running_loop().create_task(_live(puppet)))
        yield
    finally:
        for task in living:
            task.cancel()
        await asyncio.gather(*living, return_exceptions=True)
        for puppet in puppets:
            await puppet.link.close()


async def _live(puppet: TakerPuppet) -> None:
    with suppress(TransferError):
        while True:
            await puppet.say(Alive())
            await asyncio.sleep(0.1)
