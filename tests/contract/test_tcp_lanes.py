"""Data connections: bytes land before the message that follows them, and whatever becomes of one of them ends well."""

import asyncio
import logging
import os
import socket
import threading
from itertools import count

import pytest

from common.kv.ownership import Acknowledged, TakerFailed
from tests.contract.tcp_wire import (
    ALWAYS,
    Pair,
    Tamper,
    address_of,
    hang_up,
    is_turned_away,
    lane_threads,
    pair,
    relayed,
    until_striped,
)
from transfer.backends.tcp import Striping, TcpBackend
from transfer.backends.tcp.lanes import THREAD_NAME, SendingLane, end_all
from transfer.backends.tcp.link import MAX_LANES
from transfer.backends.tcp.stream import Pipe
from transfer.errors import Corrupt, PeerLost, TimedOut, TransferError
from transfer.frames import encode_join, encode_message, encode_segment_header
from transfer.testing import eventually, make_ready, mesh


async def say_raw(made: Pair, number: int, data: bytes) -> None:
    """Put bytes on data connection `number` as P, in a thread as P does."""
    await asyncio.to_thread(made.source._lanes[number]._pipe.send, data)


async def say_for_ever(made: Pair, data: bytes) -> None:
    """Until D has shut data connection 0."""
    try:
        while True:
            await say_raw(made, 0, data)
    except PeerLost:
        pass


@pytest.mark.parametrize("connections", [1, 2, 3, MAX_LANES])
async def test_every_length_lands_whole(connections: int) -> None:
    striping = Striping(connections=connections, segment_bytes=1, handoff_bytes=0)
    async with pair(TcpBackend(striping=striping)) as made:
        await made.join()
        assert len(made.source._lanes) == len(made.sink._lanes) == connections
        for length in (1, 2, 3, 1000, 65_537, 1 << 20):
            await made.pass_on(length % 2, os.urandom(length))
        assert made.source._striped >= 6


async def test_a_message_waits_for_all_stripes_before_it() -> None:
    async with pair() as made:
        await made.join()
        before = made.source._striped
        await made.source._stream.send(encode_message(b"early", mark=before + 1))
        hearing = asyncio.get_running_loop().create_task(made.sink.receive())
        await say_raw(made, 0, encode_segment_header(0, 2, 0) + b"ab")
        await say_raw(made, 1, encode_segment_header(0, 4, 2) + b"c")
        await eventually(lambda: made.sink._lanes[0].landed == before + 1)
        await asyncio.sleep(0.02)
        assert not hearing.done()
        await say_raw(made, 1, b"def")
        assert await hearing == b"early"
        assert bytes(made.zones[0].view[:6]) == b"abcdef"


async def test_only_large_segments_of_large_hand_offs_open_anything() -> None:
    striping = Striping()
    async with pair(TcpBackend(), zone_bytes=striping.segment_bytes) as made:
        large, small = bytes(striping.segment_bytes), bytes(striping.segment_bytes // 8)
        for _ in range(8 * striping.handoff_bytes // striping.segment_bytes - 8):
            await made.pass_on(0, small)
        assert made.source._token is None
        await made.pass_on(0, large)
        await eventually(lambda: lane_threads() == 4)
        await made.pass_on(0, large)
        assert made.source._striped > 0


async def test_a_short_hand_off_opens_nothing() -> None:
    striping = Striping()
    async with pair(TcpBackend(), zone_bytes=striping.segment_bytes) as made:
        await made.pass_on(0, bytes(striping.segment_bytes))
        assert made.source._token is None


async def test_writes_of_several_tasks() -> None:
    async with pair() as made:
        await made.join()
        for start in range(0, 40, 2):
            data = [os.urandom(300_000 + start), os.urandom(200_000 + start)]
            await asyncio.gather(*(_write_and_say(made, zone, data[zone]) for zone in range(2)))
            assert sorted([await made.sink.receive(), await made.sink.receive()]) == [b"0", b"1"]
            for zone in range(2):
                assert made.zones[zone].view[: len(data[zone])] == data[zone]


async def _write_and_say(made: Pair, zone: int, data: bytes) -> None:
    await made.source.write(zone, memoryview(data))
    await made.source.send(str(zone).encode())


# ------------------------------------------------------------ ends


async def test_zones_that_are_taken_away_are_not_written() -> None:
    """Although a thread is in the middle of a stripe."""
    async with pair() as made:
        await made.join()
        await say_raw(made, 0, encode_segment_header(1, 1000) + b"x" * 10)
        await eventually(lambda: made.sink._zones._users == 1)
        made.sink.register(())
        assert made.sink._zones._users == 0
        before = bytes(made.zones[1].view)
        await say_for_ever(made, b"y" * 990)
        assert made.zones[1].view == before


async def test_a_stripe_after_the_zones_are_gone() -> None:
    async with pair() as made:
        await made.join()
        made.sink.register(())
        await made.source.write(0, memoryview(b"late"))
        await made.source.send(b"late")
        with pytest.raises(Corrupt, match="of 0 zones"):
            await made.sink.receive()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 24,
        encode_segment_header(2, 1),
        encode_segment_header(0, 1 << 20, 1),
        encode_segment_header(0, 0xFFFFFFFF, 0xFFFFFFFF),
        encode_message(b"in the wrong place"),
        encode_join(bytes(40), 0, 2),
    ],
    ids=["zeros", "zone", "offset", "huge", "message", "join"],
)
async def test_nonsense_on_a_data_connection(data: bytes) -> None:
    async with pair() as made:
        await made.join()
        before = bytes(made.zones[0].view)
        await say_raw(made, 1, data)
        await made.source.send(b"nothing was striped")
        assert await made.sink.receive() == b"nothing was striped"
        await eventually(lambda: made.sink._lanes[1].failure is not None)
        await made.source._stream.send(encode_message(b"but this was", mark=made.source._striped + 1))
        with pytest.raises(Corrupt):
            await made.sink.receive()
        assert made.zones[0].view == before


@pytest.mark.parametrize("side", ["source", "sink"])
async def test_closing_ends_the_threads(side: str) -> None:
    async with pair() as made:
        await made.join()
        assert lane_threads() == 4
        await (made.source if side == "source" else made.sink).close()
        assert lane_threads() <= 2
        other = made.sink if side == "source" else made.source
        await eventually(lambda: lane_threads() == 0 or other is made.source)
        with pytest.raises(PeerLost):
            await other.receive()


async def test_a_cancelled_write_leaves_the_buffer_alone() -> None:
    """D does not read: the threads are stuck in the middle of the caller's buffer."""
    async with pair(zone_bytes=64 << 20) as made:
        await made.join()
        data = bytearray(64 << 20)
        made.sink._zones._changed.acquire()  # holds D's threads up
        try:
            write = asyncio.get_running_loop().create_task(made.source.write(0, memoryview(data)))
            await asyncio.sleep(0.1)
            assert not write.done()
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write
            data[:] = b"\xee" * len(data)  # of somebody else, by now
        finally:
            made.sink._zones._changed.release()
        await eventually(lambda: all(lane.failure is not None for lane in made.sink._lanes))
        assert b"\xee" not in bytes(made.zones[0].view)
        with pytest.raises(PeerLost):
            await made.source.send(b"more")


@pytest.mark.parametrize("side", ["source", "sink"])
async def test_a_cancelled_close_leaves_nothing(side: str) -> None:
    """A connection that is left open is an error of every test: warnings are."""
    async with pair() as made:
        await made.join()
        closing = asyncio.get_running_loop().create_task((made.source if side == "source" else made.sink).close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        await eventually(lambda: lane_threads() <= 2)


async def test_a_sink_that_wants_no_data_connections() -> None:
    striping = Striping(connections=0, segment_bytes=1, handoff_bytes=0)
    async with pair(TcpBackend(striping=striping)) as made:
        for number in range(5):
            await made.pass_on(0, os.urandom(number * 1000))
        assert made.lanes == []


@pytest.mark.parametrize("connections", [-1, MAX_LANES + 1])
def test_numbers_of_connections_that_cannot_be(connections: int) -> None:
    with pytest.raises(ValueError, match="data connections"):
        Striping(connections=connections)


async def test_no_thread_and_no_connection_is_left_after_many_hand_offs() -> None:
    async with mesh(TcpBackend(striping=ALWAYS)) as made:
        for number in range(20):
            offer, take = made.offer(str(number)), made.take(str(number))
            await take
            await offer.ended()
        await made.idle()
        assert lane_threads() == 0


# ------------------------------------------------------------ a machine that has no more threads


def few_threads(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Data connections get no more than so many."""
    start, begun = threading.Thread.start, count()

    def started(thread: threading.Thread) -> None:
        if thread.name == THREAD_NAME and next(begun) >= most:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)


async def show_token(made: Pair, token: bytes, index: int, of: int) -> asyncio.StreamWriter:
    """As a data connection does."""
    _, writer = await asyncio.open_connection(*address_of(made.endpoint))
    writer.write(encode_join(token, index, of))
    return writer


@pytest.mark.parametrize("most", [0, 1])
async def test_a_source_without_threads_stays_on_one_connection(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """None of the data connections is left, and nothing waits for a thread that never was."""
    async with pair(TcpBackend(striping=Striping(connections=0, segment_bytes=1, handoff_bytes=0))) as made:
        few_threads(monkeypatch, most)
        token = made.source._token = made.source._invitations.issue(made.source._join)
        writers = [await show_token(made, token, 0, 2)]
        await eventually(lambda: bool(made.source._joined))
        assert await is_turned_away(encode_join(token, 1, 2), made.endpoint)
        assert made.source._lanes == []
        assert not made.source._joined
        assert lane_threads() == 0
        await made.pass_on(0, os.urandom(10_000))
        for writer in writers:
            await hang_up(writer)


@pytest.mark.parametrize("most", range(5))
async def test_a_hand_off_without_threads_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    """Well or typed, at once, on both sides; then others go on."""
    async with mesh(TcpBackend(striping=ALWAYS)) as made:
        few_threads(monkeypatch, most)
        offer, take = made.offer(), made.take()
        async with asyncio.timeout(10):
            try:
                await take
                made.assert_arrived()
            except TransferError:
                pass
            assert isinstance(await offer.ended(), Acknowledged | TakerFailed)
            await made.idle()
        assert lane_threads() == 0
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
        monkeypatch.undo()
        await made.assert_works()


async def test_lanes_that_never_began_can_be_ended() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with asyncio.timeout(5):
            lane = SendingLane(Pipe(ours, None))
            await end_all([lane])
            await end_all([lane])
        assert lane.left.done()
        assert ours.fileno() == -1


# A thread that fails by a fault of ours says so, and pytest reports it.
FAILING_THREAD = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@FAILING_THREAD
async def test_a_sending_thread_that_fails_is_reported() -> None:
    async with pair() as made:
        await made.join()

        def fail(_data: object) -> None:
            raise MemoryError

        made.source._lanes[1]._pipe.send = fail  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            with pytest.raises(PeerLost, match="thread of a data connection failed"):
                await made.source.write(0, memoryview(bytes(1000)))


@FAILING_THREAD
async def test_a_receiving_thread_that_fails_is_reported() -> None:
    async with pair() as made:
        await made.join()

        def fail(_header: object) -> None:
            raise MemoryError

        made.sink._zones.lent = fail  # type: ignore[assignment, method-assign]
        await say_raw(made, 1, encode_segment_header(0, 4) + b"abcd")
        await made.source._stream.send(encode_message(b"landed", mark=made.source._striped + 1))
        async with asyncio.timeout(5):
            with pytest.raises(PeerLost, match="thread of a data connection failed"):
                await made.sink.receive()


# ------------------------------------------------------------ a wire that fails


def kill(number: int, data: bytes) -> bytes | None:
    return None if number else data


def kill_one(number: int, data: bytes) -> bytes | None:
    return None if number == 1 else data


def stall(number: int, data: bytes) -> bytes | None:
    return b"" if number else data


def stall_one(number: int, data: bytes) -> bytes | None:
    return b"" if number == 2 else data


def stall_control(number: int, data: bytes) -> bytes | None:
    return data if number else b""


def lose_the_end(number: int, data: bytes) -> bytes | None:
    return data[:-1] if number else data


def flip(number: int, data: bytes) -> bytes | None:
    return data[:-1] + bytes([data[-1] ^ 1]) if number else data


def flip_header(number: int, data: bytes) -> bytes | None:
    return data[:10] + bytes([data[10] ^ 1]) + data[11:] if number == 2 else data


def repeat(number: int, data: bytes) -> bytes | None:
    return data + data if number == 1 else data


@pytest.mark.parametrize(
    ("tamper", "errors"),
    [
        (kill, PeerLost),
        (kill_one, PeerLost),
        (stall, TimedOut),
        (stall_one, TimedOut),
        (stall_control, TimedOut),
        (lose_the_end, (Corrupt, TimedOut)),
        (flip, Corrupt),
        (flip_header, Corrupt),
    ],
)
async def test_a_data_connection_fails(tamper: Tamper, errors: type[TransferError]) -> None:
    """Alone, while the control connection lives. Both sides end typed, and nobody else is harmed."""
    async with mesh(TcpBackend(striping=ALWAYS)) as made, relayed(made.endpoints[0]) as relay:
        offer, take = made.offer(layers=0), made.take(endpoints=(relay.endpoint,))
        make_ready(offer, 0, 1)
        await until_striped(made)
        relay.tamper = tamper
        make_ready(offer, 1, 4)
        with pytest.raises(errors):
            await take
        assert isinstance(await offer.ended(), TakerFailed)
        await made.assert_works()
    assert lane_threads() == 0


async def test_repeated_stripes_change_nothing() -> None:
    """They say the same, and are for a zone that was written before: what is delivered is proved by its checksum."""
    async with mesh(TcpBackend(striping=ALWAYS)) as made, relayed(made.endpoints[0]) as relay:
        offer, take = made.offer(layers=1), made.take(endpoints=(relay.endpoint,))
        await until_striped(made)
        relay.tamper = repeat
        make_ready(offer, 1, 4)
        try:
            await take
            made.assert_arrived()
        except TransferError:
            assert isinstance(await offer.ended(), TakerFailed)


async def test_data_connections_that_cannot_be_opened_are_done_without() -> None:
    async with mesh(TcpBackend(striping=ALWAYS)) as made, relayed(made.endpoints[0]) as relay:
        offer, take = made.offer(layers=0), made.take(endpoints=(relay.endpoint,))
        await eventually(lambda: offer.is_taken)
        relay._server.close()  # no more connections
        make_ready(offer, 0, 4)
        await take
        made.assert_arrived()
        assert relay.connections == 1


async def test_a_slow_segment_is_a_sign_of_life() -> None:
    """Slower than the progress timeout, but it moves."""
    async with pair() as made:
        await made.join()
        await say_raw(made, 0, encode_segment_header(0, 100))
        await eventually(lambda: made.sink._zones._users == 1)
        for _ in range(5):
            heard = made.sink.bytes_heard
            await say_raw(made, 0, b"x")
            await eventually(lambda heard=heard: made.sink.bytes_heard == heard + 1)  # type: ignore[misc]
