"""Whoever reaches the port: wrong tokens, floods, slow ones, and noise of every kind in every place."""

import asyncio
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.tcp_wire import ALWAYS, Relay, address_of, hang_up, is_turned_away, lane_threads, pair, relayed
from transfer.backends.tcp import TcpBackend
from transfer.backends.tcp.listener import WAITING_ROOM, TcpListener
from transfer.errors import TransferError
from transfer.frames import TOKEN_BYTES, encode_hello, encode_join, encode_message
from transfer.testing import Mesh, eventually, make_ready, mesh


def listener_of(made: Mesh) -> TcpListener:
    """The one of its source."""
    (listener,) = made.source._listeners
    assert isinstance(listener, TcpListener)
    return listener


# ------------------------------------------------------------ tokens


def guesses(token: bytes) -> list[bytes]:
    """Wrong in one bit of the name, in one of the secret, altogether, and not at all."""
    return [
        bytes([token[0] ^ 1]) + token[1:],
        token[:-1] + bytes([token[-1] ^ 1]),
        token[:8] + bytes(TOKEN_BYTES - 8),
        os.urandom(TOKEN_BYTES),
        bytes(TOKEN_BYTES),
    ]


async def test_wrong_tokens_join_nobody() -> None:
    async with pair() as made:
        token = made.source._invitations.issue(made.source._join)
        for guess in guesses(token):
            assert await is_turned_away(encode_join(guess, 0, 1), made.endpoint)
        assert not made.source._joined
        assert not made.source._lanes
        made.source._invitations.revoke(token)
        assert await is_turned_away(encode_join(token, 0, 1), made.endpoint)
        await made.join()


@pytest.mark.parametrize(("index", "count"), [(0, 0), (1, 1), (2, 2), (0, 17), (65_535, 65_536), (0, 0xFFFFFFFF)])
async def test_the_right_token_with_senseless_numbers(index: int, count: int) -> None:
    async with pair() as made:
        token = made.source._invitations.issue(made.source._join)
        assert await is_turned_away(encode_join(token, index, count), made.endpoint)
        assert not made.source._joined
        assert lane_threads() == 0
        made.source._invitations.revoke(token)


async def test_a_token_joins_once() -> None:
    """A second bearer of a good token gets no place that is taken, and none when all have joined."""
    async with pair() as made:
        token = made.source._invitations.issue(made.source._join)
        made.source._token = token
        _, first = await asyncio.open_connection(*address_of(made.endpoint))
        first.write(encode_join(token, 0, 2))
        await eventually(lambda: bool(made.source._joined))
        assert await is_turned_away(encode_join(token, 0, 2), made.endpoint)
        _, second = await asyncio.open_connection(*address_of(made.endpoint))
        second.write(encode_join(token, 1, 2))
        await eventually(lambda: bool(made.source._lanes))
        assert await is_turned_away(encode_join(token, 0, 2), made.endpoint)
        await hang_up(first)
        await hang_up(second)


async def test_the_first_of_a_tokens_connections_says_how_many_there_are(caplog: pytest.LogCaptureFixture) -> None:
    """Another number is turned away; those of the first may go on, and are closed with the link."""
    async with pair() as made:
        token = made.source._token = made.source._invitations.issue(made.source._join)
        reader, first = await asyncio.open_connection(*address_of(made.endpoint))
        first.write(encode_join(token, 2, 3))
        await eventually(lambda: bool(made.source._joined))
        for index, of in ((0, 2), (1, 16)):
            assert await is_turned_away(encode_join(token, index, of), made.endpoint)
        assert set(made.source._joined) == {2}
        assert "the first was one of 3" in caplog.text
        assert "failed" not in caplog.text
        await made.source.close()
        assert await reader.read() == b""
        await hang_up(first)


# ------------------------------------------------------------ floods


@pytest.mark.parametrize("data", [b"", b"P", encode_hello()[:-1], encode_join(bytes(TOKEN_BYTES), 0, 2)[:-1]])
async def test_a_flood_keeps_nobody_away(data: bytes) -> None:
    """Twice as many as there is room for, which say nothing, or not all of it."""
    async with mesh(TcpBackend(striping=ALWAYS)) as made:
        writers = []
        for _ in range(2 * WAITING_ROOM):
            _, writer = await asyncio.open_connection(*address_of(made.endpoints[0]))
            writer.write(data)
            writers.append(writer)
        await made.assert_works()
        assert len(listener_of(made)._waiting) <= WAITING_ROOM
        await asyncio.gather(*(hang_up(writer) for writer in writers))
        await eventually(lambda: not listener_of(made)._waiting)


async def test_a_flood_of_guesses_during_a_hand_off() -> None:
    async with mesh(TcpBackend(striping=ALWAYS)) as made:
        offer, take = made.offer(layers=1), made.take()
        join = encode_join(os.urandom(TOKEN_BYTES), 0, 2)
        answers = await asyncio.gather(*(is_turned_away(join, made.endpoints[0]) for _ in range(100)))
        assert all(answers)
        make_ready(offer, 1, 4)
        await take
        made.assert_arrived()


async def test_closing_ends_the_waiting_room() -> None:
    async with mesh(TcpBackend()) as made:
        _, writer = await asyncio.open_connection(*address_of(made.endpoints[0]))
        listener = listener_of(made)
        await eventually(lambda: bool(listener._waiting))
        await made.source.close()
        assert not listener._waiting
        await hang_up(writer)


# ------------------------------------------------------------ noise

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.binary(max_size=200), begun=st.booleans())
def test_noise_at_the_door(data: bytes, begun: bool) -> None:
    """Whether or not it begins as it should, the connection ends, and honest peers are served."""

    async def run() -> None:
        async with mesh(TcpBackend()) as made:
            _, writer = await asyncio.open_connection(*address_of(made.endpoints[0]))
            writer.write(encode_hello() + data if begun else data)
            writer.write_eof()
            await made.assert_works()
            await eventually(lambda: not listener_of(made)._waiting)
            await hang_up(writer)

    asyncio.run(run())


def cut(data: bytes, at: int) -> bytes:
    """The rest is never sent."""
    return data[:at]


def flip(data: bytes, at: int) -> bytes:
    """One bit."""
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def double(data: bytes, at: int) -> bytes:
    """From some byte on, twice."""
    return data + data[at:]


def swap(data: bytes, at: int) -> bytes:
    """The parts change places."""
    return data[at:] + data[:at]


def stuff(data: bytes, at: int) -> bytes:
    """A message of no meaning in the middle."""
    return data[:at] + encode_message(b"\xc1", mark=at) + data[at:]


@FUZZ
@given(
    change=st.sampled_from([cut, flip, double, swap, stuff]),
    connection=st.integers(0, 2),
    nth=st.integers(0, 5),
    place=st.integers(0, 1 << 16),
)
def test_a_damaged_stream_delivers_no_wrong_byte(change: object, connection: int, nth: int, place: int) -> None:
    """From P to D, on any of the three connections. The take ends typed or with the right bytes, and others go on."""
    assert callable(change)

    def tamper(number: int, data: bytes) -> bytes:
        nonlocal nth
        if number != connection:
            return data
        nth -= 1
        damaged: bytes = change(data, place % len(data)) if nth == -1 else data
        return damaged

    async def run() -> None:
        async with mesh(TcpBackend(striping=ALWAYS)) as made, relayed(made.endpoints[0]) as relay:
            await damaged_take(made, relay)
            await made.assert_works()
        assert lane_threads() == 0

    async def damaged_take(made: Mesh, relay: Relay) -> None:
        relay.tamper = tamper
        offer, take = made.offer(layers=2), made.take(endpoints=(relay.endpoint,))
        for layer in (2, 3):
            await asyncio.sleep(0.002)
            make_ready(offer, layer, layer + 1)
        try:
            await take
        except TransferError:
            await offer.ended()
            return
        made.assert_arrived()

    asyncio.run(run())
