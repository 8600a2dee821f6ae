"""Server and client with keys, over real sockets on loopback: who gets in, who never does, and who is thrown out."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq
from zmq.utils import z85

from common.bus import zap
from common.bus.client import BusClient, Disconnected, Refused
from common.bus.codecs import from_worker_codec, to_worker_codec
from common.bus.drops import Drops
from common.bus.gate import Gate
from common.bus.key_files import make_keys, withdraw_key
from common.bus.keys import InstanceKeys, KeyPair, new_pair, read_instance
from common.bus.member import MembershipClient, Registration
from common.bus.server import BusServer
from common.bus.sockets import BusError
from common.clock import SystemClock
from common.errors import ConfigError
from common.ids import Generation, InstanceId
from common.messages.control import (
    FromWorker,
    Heartbeat,
    HeartbeatAck,
    Load,
    Register,
    Rejected,
    ToWorker,
    Welcome,
)
from common.tasks import TaskScope
from tests.unit.common.bus_fixtures import FAST, HEARTBEAT, make_client, registration, until

P0, D0 = InstanceId("p0"), InstanceId("d0")
LOOK_S = 0.02


class Door:
    """A server with keys, and what its gate said."""

    def __init__(self, folder: Path, endpoint: str = "tcp://127.0.0.1:*") -> None:
        self.folder = folder
        self.withdrawn: list[InstanceId] = []
        self.server: BusServer[FromWorker, ToWorker] = BusServer(
            endpoint,
            from_worker_codec(),
            to_worker_codec(),
            drops=Drops(SystemClock()),
            options=FAST,
            gate=Gate(folder, on_withdrawn=self.withdrawn.append, look_s=LOOK_S),
            refuse=lambda reason: Rejected(reason=reason, fatal=True),
        )

    def keys(self, instance: InstanceId = D0) -> InstanceKeys:
        return read_instance(self.folder, instance)

    def client(self, keys: InstanceKeys | None) -> BusClient[ToWorker, FromWorker]:
        return BusClient(
            self.endpoint,
            to_worker_codec(),
            from_worker_codec(),
            drops=Drops(SystemClock()),
            options=FAST,
            keys=keys,
        )

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    async def start(self) -> None:
        self.endpoint = await self.server.start()


@asynccontextmanager
async def a_door(folder: Path) -> AsyncIterator[Door]:
    make_keys(folder, [P0, D0])
    door = Door(folder)
    await door.start()
    try:
        yield door
    finally:
        await door.server.close()


@asynccontextmanager
async def connected(client: BusClient[ToWorker, FromWorker]) -> AsyncIterator[BusClient[ToWorker, FromWorker]]:
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def talk(door: Door, client: BusClient[ToWorker, FromWorker]) -> bytes:
    """A message each way; the peer."""
    await until(lambda: client.send(HEARTBEAT))
    peer, message = await door.server.receive()
    assert message == HEARTBEAT
    assert door.server.send(peer, HeartbeatAck(epoch=Generation(3)))
    assert await client.receive_many() == [HeartbeatAck(epoch=Generation(3))]
    return peer


async def refusal(client: BusClient[ToWorker, FromWorker]) -> str:
    """Why `client` is refused; nothing of what it wants to say has left by then."""
    async with asyncio.timeout(20):
        while True:
            assert not client.offer(HEARTBEAT), "it is connected"
            for event in await client.receive_many(0.02):
                if isinstance(event, Refused):
                    return event.reason
                assert event == Disconnected(), "a stranger hears nothing"


async def round_trip(folder: Path) -> None:
    async with a_door(folder) as door, connected(door.client(door.keys())) as client:
        await talk(door, client)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_right_key_opens(run: Callable[..., None], tmp_path: Path) -> None:
    run(round_trip(tmp_path))


async def test_a_strangers_key_never_opens_and_nothing_of_him_is_read(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        stranger = InstanceKeys(new_pair(), door.keys().gateway)
        async with connected(door.client(stranger)) as client:
            assert "does not know this instance's key" in await refusal(client)
        await until(lambda: door.server.drops.refused)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(door.server.receive(), 0.05)


async def test_without_a_key_nothing_opens(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door, connected(door.client(None)) as client:
        assert "the other has none" in await refusal(client)


async def test_an_instance_with_keys_speaks_with_no_gateway_that_has_none(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        plain = BusServer[FromWorker, ToWorker](
            "tcp://127.0.0.1:*", from_worker_codec(), to_worker_codec(), drops=Drops(SystemClock()), options=FAST
        )
        endpoint = await plain.start()
        client = BusClient[ToWorker, FromWorker](
            endpoint, to_worker_codec(), from_worker_codec(), drops=Drops(SystemClock()), options=FAST, keys=door.keys()
        )
        async with connected(client):
            assert re.search("or none|the other has none", await refusal(client))
        await plain.close()


async def test_a_refusal_is_heard_however_fast_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_keys(tmp_path, [D0])
    plain = BusServer[FromWorker, ToWorker](
        "tcp://127.0.0.1:*", from_worker_codec(), to_worker_codec(), drops=Drops(SystemClock()), options=FAST
    )
    client = BusClient[ToWorker, FromWorker](
        await plain.start(),
        to_worker_codec(),
        from_worker_codec(),
        drops=Drops(SystemClock()),
        options=FAST,
        keys=read_instance(tmp_path, D0),
    )
    monkeypatch.setattr(zmq.Socket, "get_monitor_socket", attach_late)
    async with connected(client):
        assert re.search("or none|the other has none", await refusal(client))
    await plain.close()


def attach_late(socket: zmq.SyncSocket, events: int, attach: Any = zmq.Socket.get_monitor_socket) -> zmq.SyncSocket:
    """On a machine with too much to do: a handshake under way would be over by then."""
    time.sleep(0.5)
    return attach(socket, events)


async def test_an_instance_speaks_with_no_other_gateway_than_its_own(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        misled = InstanceKeys(door.keys().own, new_pair().public)
        async with connected(door.client(misled)) as client:
            assert "another key" in await refusal(client)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(door.server.receive(), 0.05)


async def test_nobody_says_that_he_is_another(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door, connected(door.client(door.keys(P0))) as client:
        await until(lambda: client.send(registration(Generation(1))))
        receiving = asyncio.ensure_future(door.server.receive())
        (answer,) = await client.receive_many(10.0)
        assert isinstance(answer, Rejected)
        assert answer.fatal
        assert "says that it is 'd0', and its key is that of 'p0'" in answer.reason
        assert client.send(Heartbeat(P0, Generation(1), Load()))
        assert (await receiving)[1].instance == P0, "what it says of itself is heard"
        assert door.server.drops.refused == 1


async def test_a_revoked_key_ends_the_session_it_opened_and_opens_no_other(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door, AsyncExitStack() as stack:
        good = await stack.enter_async_context(connected(door.client(door.keys(P0))))
        bad = await stack.enter_async_context(connected(door.client(door.keys(D0))))
        await talk(door, bad)
        withdraw_key(tmp_path, D0)
        await until(lambda: door.withdrawn)
        assert door.withdrawn == [D0]
        assert bad.send(HEARTBEAT), "ZeroMQ itself goes on"
        await until(lambda: good.send(Heartbeat(P0, Generation(1), Load())))
        receiving = asyncio.ensure_future(door.server.receive())
        await until(lambda: door.server.drops.refused)
        assert (await receiving)[1].instance == P0, "and the others go on"
        again = await stack.enter_async_context(connected(door.client(door.keys(D0))))
        assert "revoked" in await refusal(again)


async def test_a_replaced_key_ends_the_old_session_and_the_new_one_opens(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door, connected(door.client(door.keys())) as old:
        await talk(door, old)
        make_keys(tmp_path, [], [D0])
        await until(lambda: door.withdrawn)
        assert old.send(HEARTBEAT)
        async with connected(door.client(door.keys())) as new:
            await talk(door, new)
        assert door.server.drops.refused == 1


async def test_an_added_key_opens_a_door_that_is_already_open(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        make_keys(tmp_path, [InstanceId("d7")])
        await asyncio.sleep(5 * LOOK_S)
        async with connected(door.client(door.keys(InstanceId("d7")))) as client:
            await until(lambda: client.send(Heartbeat(InstanceId("d7"), Generation(1), Load())))
            assert (await door.server.receive())[1].instance == "d7"
        assert door.withdrawn == []


def private_keys(folder: Path) -> list[bytes]:
    return [path.read_bytes().strip() for path in folder.glob("*/private.key")]


class Player:
    """A member whose keys are read from the folder for each connection."""

    def __init__(self, door: Door) -> None:
        self.losses: list[str] = []
        lives = iter(range(1, 1000))
        self.member = MembershipClient(
            lambda: door.client(door.keys()),
            Registration(
                draw_generation=lambda: Generation(next(lives)),
                register=registration,
                load=Load,
                on_message=lambda _: None,
                on_lost=self._lost,
            ),
            SystemClock(),
        )

    async def _lost(self, reason: str) -> None:
        self.losses.append(reason)


async def test_a_member_whose_key_was_replaced_comes_back_with_the_new_one(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        player, scope, lives = Player(door), TaskScope("test"), []

        async def welcome() -> None:
            while True:
                peer, message = await door.server.receive()
                if isinstance(message, Register):
                    lives.append(message.generation)
                    door.server.send(peer, Welcome(epoch=Generation(9), heartbeat_s=0.02, lease_s=0.3))
                else:
                    door.server.send(peer, HeartbeatAck(epoch=Generation(9)))

        scope.start(welcome(), "gateway")
        scope.start(player.member.run(), "member")
        await until(lambda: player.member.is_joined)
        make_keys(tmp_path, [], [D0])
        await until(lambda: len(lives) > 1 and player.member.is_joined)
        assert len(player.losses) == 1
        await scope.close()


async def test_a_flood_of_strangers_and_of_noise_does_not_disturb_a_member(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door, AsyncExitStack() as stack:
        good = await stack.enter_async_context(connected(door.client(door.keys())))
        await talk(door, good)
        context = stack.enter_context(zmq.Context())
        for _ in range(60):
            pair, dealer = new_pair(), stack.enter_context(context.socket(zmq.DEALER))
            dealer.set(zmq.LINGER, 0)
            dealer.set(zmq.CURVE_SERVERKEY, door.keys().gateway)
            dealer.set(zmq.CURVE_PUBLICKEY, pair.public)
            dealer.set(zmq.CURVE_SECRETKEY, pair.secret.reveal())
            dealer.connect(door.endpoint)
            _, writer = await asyncio.open_connection("127.0.0.1", door.port)
            stack.callback(writer.close)
            writer.write(b"\x00\xff" * 200)
            assert good.send(HEARTBEAT)
            assert (await door.server.receive())[1] == HEARTBEAT
        await until(lambda: door.server.drops.refused >= 60)
        await talk(door, good)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.0\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03\x00NULL", b""])
async def test_a_port_scanner_learns_that_keys_are_needed_and_no_more(words: bytes, tmp_path: Path) -> None:
    async with a_door(tmp_path) as door, connected(door.client(door.keys())) as good:
        await talk(door, good)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(words.ljust(64, b"\0") + b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER")
        heard = b""
        with suppress(ConnectionResetError):
            while piece := await asyncio.wait_for(reader.read(64), 20):
                heard += piece
        writer.close()
        assert len(heard) <= 64, "half of a greeting, and then the door is shut"
        assert door.keys().gateway not in heard
        assert z85.decode(door.keys().gateway) not in heard
        await talk(door, good)


async def test_no_private_key_is_in_any_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with a_door(tmp_path) as door:
        stranger = InstanceKeys(new_pair(), door.keys().gateway)
        secrets = [stranger.own.secret.reveal(), *private_keys(tmp_path)]
        async with connected(door.client(door.keys())) as client:
            await talk(door, client)
            withdraw_key(tmp_path, D0)
            await until(lambda: door.withdrawn)
            assert client.send(HEARTBEAT)
            async with connected(door.client(stranger)) as other:
                await refusal(other)
            await until(lambda: door.server.drops.refused)
            shown = [caplog.text, *(f"{vars(one)!r}" for one in (client, other, door.server))]
    assert len(secrets) == 4
    assert "refused" in caplog.text
    assert not [text for text in shown if any(secret.decode() in text for secret in secrets)]


async def test_a_door_that_cannot_open_leaves_nothing_behind(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        before = asyncio.all_tasks()
        with pytest.raises(BusError, match="cannot listen"):
            await Door(tmp_path, door.endpoint).start()
        with pytest.raises(ConfigError, match=r"nowhere/gateway/private\.key"):
            await Door(tmp_path / "nowhere").start()
        assert asyncio.all_tasks() == before


async def test_plain_sockets_are_as_they_were() -> None:
    """No keys: no handler, no handshake, nothing that costs."""
    server = BusServer[FromWorker, ToWorker](
        "tcp://127.0.0.1:*", from_worker_codec(), to_worker_codec(), drops=Drops(SystemClock()), options=FAST
    )
    client = make_client(await server.start())
    await client.start()
    await until(lambda: client.send(HEARTBEAT))
    peer, _ = await server.receive()
    assert server._socket is not None
    assert server._socket.get(zmq.MECHANISM) == zmq.NULL
    assert server.send(peer, HeartbeatAck(epoch=Generation(1)))
    await client.close()
    await server.close()


class TestAnswers:
    """ZAP, RFC 27."""

    PAIR: KeyPair = new_pair()
    RAW: bytes = z85.decode(PAIR.public)

    def question(self, mechanism: bytes = b"CURVE", *credentials: bytes) -> list[bytes]:
        return [b"1.0", b"7", b"control", b"10.0.0.9", b"", mechanism, *credentials]

    def test_an_allowed_key_is_the_user(self) -> None:
        answer = zap.answer(self.question(b"CURVE", self.RAW), {self.PAIR.public: D0})
        assert answer.frames == (b"1.0", b"7", b"200", b"OK", self.PAIR.public, b"")
        assert answer.refused is None

    @pytest.mark.parametrize(
        "request_",
        [
            [b"1.0", b"7", b"control", b"10.0.0.9", b"", b"CURVE", RAW],
            [b"1.0", b"7", b"control", b"10.0.0.9", b"", b"CURVE", RAW[:31]],
            [b"1.0", b"7", b"control", b"10.0.0.9", b"", b"CURVE", RAW, RAW],
            [b"1.0", b"7", b"control", b"10.0.0.9", b"", b"NULL"],
            [b"1.0", b"7", b"control", b"10.0.0.9", b"", b"PLAIN", b"admin", b"admin"],
        ],
    )
    def test_everybody_else_is_refused(self, request_: list[bytes]) -> None:
        answer = zap.answer(request_, {})
        assert answer.frames[:3] == (b"1.0", b"7", b"400")
        assert answer.refused is not None
        assert "10.0.0.9" in answer.refused[0]

    @pytest.mark.parametrize("request_", [[], [b"1.0"], [b"2.0", b"7", b"", b"", b"", b"CURVE", RAW], [b"1.0", b"7"]])
    def test_a_question_of_another_form_is_answered_with_no(self, request_: list[bytes]) -> None:
        answer = zap.answer(request_, {self.PAIR.public: D0})
        assert answer.frames[2] == b"500"
        assert len(answer.frames) == 6
