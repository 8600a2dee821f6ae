"""Server and client over real sockets on loopback."""

import asyncio
from contextlib import asynccontextmanager

import msgpack
import pytest
import uvloop
import zmq
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bus.client import Disconnected
from common.bus.codecs import from_worker_codec, to_worker_codec
from common.bus.sockets import BusError, BusOptions
from common.errors import MalformedMessage
from common.ids import Generation, RequestId
from common.messages.control import (
    Abort,
    EmittedTokens,
    HeartbeatAck,
    TokensEmitted,
)
from tests.unit.common.bus_fixtures import HEARTBEAT, make_client, make_server, registration, until


@asynccontextmanager
async def pair():
    server = make_server()
    client = make_client(await server.start())
    await client.start()
    await until(lambda: client.send(HEARTBEAT))
    peer, message = await server.receive()
    assert message == HEARTBEAT
    try:
        yield server, client, peer
    finally:
        await client.close()
        await server.close()


@asynccontextmanager
async def raw_peer(endpoint):
    """Speaks to a server in bytes."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.set(zmq.LINGER, 0)
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close()
        context.term()


async def round_trip() -> None:
    async with pair() as (server, client, peer):
        assert server.send(peer, HeartbeatAck(epoch=Generation(3)))
        assert await client.receive_many() == [HeartbeatAck(epoch=Generation(3))]


async def test_messages_go_both_ways():
    await round_trip()


def test_the_bus_runs_under_uvloop():
    uvloop.run(round_trip())


async def test_a_burst_arrives_whole_and_in_order_both_ways():
    async with pair() as (server, client, peer):
        for number in range(1000):
            assert server.send(peer, HeartbeatAck(epoch=Generation(number)))
            assert client.send(registration(Generation(number)))
        there, back = [], []
        while len(there) < 1000:
            there += await server.receive_many()
        while len(back) < 1000:
            back += await client.receive_many()
        assert [message.generation for _, message in there] == list(range(1000))
        assert [message.epoch for message in back] == list(range(1000))


async def test_cancelled_receives_lose_nothing():
    async with pair() as (server, client, _):
        waiting = asyncio.ensure_future(server.receive())
        await asyncio.sleep(0)
        assert client.send(HEARTBEAT)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await server.receive())[1] == HEARTBEAT


async def test_receive_many_ends_empty_when_the_time_is_over():
    async with pair() as (_, client, _peer):
        assert await client.receive_many(timeout_s=0.01) == []


async def test_a_gone_peer_is_counted_not_raised():
    async with pair() as (server, client, peer):
        await client.close()
        await until(lambda: not server.send(peer, Abort(request=RequestId("r"))))
        assert server.drops.undeliverable == 1
        assert not server.send(b"never seen", Abort(request=RequestId("r")))
        assert server.drops.undeliverable == 2


async def test_a_full_peer_is_refused_without_blocking():
    server = make_server(options=BusOptions(queue=5, heartbeat_timeout_s=60.0, linger_s=0.05))
    async with raw_peer(await server.start()) as stuck:
        stuck.set(zmq.RCVHWM, 1)
        await stuck.send(from_worker_codec().encode(HEARTBEAT))
        peer, _ = await server.receive()
        big = Abort(request=RequestId("r" * (1 << 20)))
        sent = 0
        while server.send(peer, big):
            sent += 1
            assert sent < 1000, "a peer that takes nothing must be refused at some point"
        assert server.drops.undeliverable == 1
    await server.close()


async def test_the_client_notices_a_lost_server_and_comes_back_as_another_peer():
    server = make_server()
    endpoint = await server.start()
    client = make_client(endpoint)
    await client.start()
    await until(lambda: client.send(HEARTBEAT))
    first, _ = await server.receive()
    await server.close()
    assert await client.receive_many() == [Disconnected()]
    assert not client.send(HEARTBEAT), "nothing is queued for a server that is not there"
    assert client.drops.undeliverable >= 1
    server = make_server(endpoint)
    assert await server.start() == endpoint
    await until(lambda: client.send(HEARTBEAT))
    second, message = await server.receive()
    assert message == HEARTBEAT
    assert second != first
    await client.close()
    await server.close()


async def test_a_taken_endpoint_is_a_clear_error():
    server = make_server()
    endpoint = await server.start()
    with pytest.raises(BusError, match=r"cannot listen at .*choose another"):
        await make_server(endpoint).start()
    with pytest.raises(BusError, match="cannot connect to 'nonsense'"):
        await make_client("nonsense").start()
    await server.close()


async def test_malformed_frames_are_counted_and_dropped_and_the_next_message_arrives(caplog):
    server = make_server()
    async with raw_peer(await server.start()) as peer:
        for frames in ([b""], [b"\xc1"], [b"a", b"b"], [msgpack.packb([99, {"type": "Heartbeat"}])]):
            await peer.send_multipart(frames)
        await peer.send(from_worker_codec().encode(HEARTBEAT))
        assert (await server.receive())[1] == HEARTBEAT
    assert server.drops.malformed == 4
    lines = [record for record in caplog.records if "malformed" in record.message]
    assert len(lines) == 1, "a peer cannot flood the log"
    await server.close()


async def test_a_frame_over_the_limit_ends_that_connection_only():
    server = make_server(options=BusOptions(max_frame_bytes=1000))
    endpoint = await server.start()
    async with raw_peer(endpoint) as hostile, raw_peer(endpoint) as good:
        await hostile.send(b"x" * 2000)
        await good.send(from_worker_codec().encode(HEARTBEAT))
        assert (await server.receive())[1] == HEARTBEAT
    await server.close()


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=300)
    | st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**31), 2**31)
        | st.floats()
        | st.text(max_size=8)
        | st.binary(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    ).map(lambda value: msgpack.packb([2, value]))
)
def test_arbitrary_bytes_are_malformed_and_nothing_else(data):
    for codec in (from_worker_codec(), to_worker_codec()):
        with pytest.raises(MalformedMessage):
            codec.decode(data)


def test_arbitrary_bytes_into_both_ends_are_counted_and_harm_nobody():
    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.binary(max_size=64), min_size=1, max_size=8))
    def into_both(frames):
        asyncio.run(_into_both(frames))

    into_both()


async def _into_both(frames):
    server = make_server()
    async with raw_peer(await server.start()) as peer:
        for frame in frames:
            await peer.send(frame)
        await peer.send(from_worker_codec().encode(HEARTBEAT))
        assert (await server.receive())[1] == HEARTBEAT
        assert server.drops.malformed == len(frames)
    await server.close()

    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    router.set(zmq.LINGER, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    client = make_client(f"tcp://127.0.0.1:{port}")
    await client.start()
    await until(lambda: client.send(HEARTBEAT))
    peer_name, _ = await router.recv_multipart()
    for frame in frames:
        await router.send_multipart([peer_name, frame])
    await router.send_multipart([peer_name, to_worker_codec().encode(HeartbeatAck(epoch=Generation(1)))])
    received = []
    while not received:
        received = await client.receive_many()
    assert received == [HeartbeatAck(epoch=Generation(1))]
    assert client.drops.malformed == len(frames)
    await client.close()
    router.close()
    context.term()


def test_the_reference_msgpack_reads_and_writes_our_frames():
    tokens = EmittedTokens(request=RequestId("r"), choice=0, first=2, tokens=(5, 6))
    message = TokensEmitted(instance=HEARTBEAT.instance, generation=Generation(2**62), items=(tokens,))
    version, body = msgpack.unpackb(from_worker_codec().encode(message))
    assert version == 4
    assert body == {
        "type": "TokensEmitted",
        "instance": "d0",
        "generation": 2**62,
        "items": [["r", 0, 2, [5, 6], None, [], []]],
        "progress": None,
        "began": [],
    }
    theirs = msgpack.packb([4, {"type": "Abort", "request": "r"}])
    assert to_worker_codec().decode(theirs) == Abort(request=RequestId("r"))


async def nobody_oversleeps() -> None:
    async with pair() as (server, client, _):

        async def answer() -> None:
            while True:
                name, message = await server.receive()
                # Two for each: what the client says meanwhile arrives while the server uses its socket.
                assert server.send(name, HeartbeatAck(epoch=message.generation))
                await asyncio.sleep(0)
                assert server.send(name, HeartbeatAck(epoch=message.generation))

        answering = asyncio.ensure_future(answer())
        heard = asked = 0
        for number in range(600):
            asked += number % 3
            for _ in range(number % 3):
                assert client.send(registration(Generation(number)))
                await asyncio.sleep(0)
            async with asyncio.timeout(10.0):
                while heard < 2 * asked:
                    heard += len(await client.receive_many())
        answering.cancel()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_nobody_sleeps_through_a_message_that_came_while_it_sent(run):
    run(nobody_oversleeps())


async def test_a_wait_that_is_over_leaves_the_next_one_alone():
    async with pair() as (server, client, peer):
        for _ in range(3):
            assert await client.receive_many(timeout_s=0.005) == []
        waiting = asyncio.ensure_future(client.receive_many(timeout_s=5.0))
        await asyncio.sleep(0.01)
        assert server.send(peer, HeartbeatAck(epoch=Generation(7)))
        assert await waiting == [HeartbeatAck(epoch=Generation(7))]
