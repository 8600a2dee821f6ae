"""The membership client against a gateway that the test plays over real sockets."""

import asyncio
import itertools
import logging
from contextlib import asynccontextmanager

import pytest

from common.bus.member import MembershipClient, MembershipRejected, Registration
from common.clock import Clock, SystemClock
from common.ids import Generation, RequestId
from common.messages.control import (
    Abort,
    Drain,
    Heartbeat,
    HeartbeatAck,
    Leaving,
    Load,
    PrefillReleased,
    Register,
    Rejected,
    Welcome,
)
from common.tasks import TaskScope
from tests.unit.common.bus_fixtures import make_client, make_server, registration, until

EPOCH = Generation(99)
WELCOME = Welcome(epoch=EPOCH, heartbeat_s=0.02, lease_s=0.3)


class Worker:
    """A worker that notes what happens to it."""

    def __init__(self, endpoint: str, clock: Clock | None = None) -> None:
        numbers = itertools.count(1)
        self.messages: list[object] = []
        self.losses: list[str] = []
        self.member = MembershipClient(
            lambda: make_client(endpoint),
            Registration(
                draw_generation=lambda: Generation(next(numbers)),
                register=registration,
                load=lambda: Load(running=5),
                on_message=self.messages.append,
                on_lost=self._on_lost,
            ),
            clock or SystemClock(),
        )

    async def _on_lost(self, reason: str) -> None:
        assert not self.member.is_joined
        await asyncio.sleep(0)
        self.losses.append(reason)


@asynccontextmanager
async def joined(endpoint: str = "tcp://127.0.0.1:*"):
    """(server, worker, peer of the worker) after the first heartbeat."""
    server = make_server(endpoint)
    worker = Worker(await server.start())
    scope = TaskScope("test")
    worker.running = scope.start(worker.member.run(), "member")
    peer = await welcome(server, Generation(1))
    yield server, worker, peer
    await scope.close()
    await server.close()


async def welcome(server, generation, answer=WELCOME) -> bytes:
    """Answer the Register of `generation`; return when its first heartbeat is there."""
    while True:
        peer, message = await server.receive()
        if isinstance(message, Register) and message.generation == generation:
            server.send(peer, answer)
        elif isinstance(message, Heartbeat) and message.generation == generation:
            server.send(peer, HeartbeatAck(epoch=answer.epoch))
            return peer


async def acknowledge(server, until_true, epoch=EPOCH) -> None:
    while not until_true():
        peer, message = await server.receive()
        if isinstance(message, Heartbeat):
            server.send(peer, HeartbeatAck(epoch=epoch))


async def test_joins_reports_its_load_and_stays_while_acknowledged():
    async with joined() as (server, worker, _):
        loads = []
        while len(loads) < 30:  # twice the lease
            peer, message = await server.receive()
            loads.append(message.load)
            server.send(peer, HeartbeatAck(epoch=EPOCH))
        assert set(loads) == {Load(running=5)}
        assert worker.member.is_joined
        assert worker.losses == []


async def test_work_reaches_the_worker_in_order_and_its_words_reach_the_gateway():
    async with joined() as (server, worker, peer):
        work = [Abort(request=RequestId("a")), Drain(), Abort(request=RequestId("b"))]
        for message in work:
            server.send(peer, message)
        await acknowledge(server, lambda: len(worker.messages) == 3)
        assert worker.messages == work
        said = PrefillReleased(instance="d0", generation=Generation(1), request=RequestId("a"))
        assert worker.member.send(said)
        while (message := (await server.receive())[1]) != said:
            assert isinstance(message, Heartbeat)


async def test_a_silent_gateway_is_lost_and_joined_anew_with_a_new_generation():
    async with joined() as (server, worker, peer):
        await until(lambda: worker.losses)
        assert "acknowledged nothing" in worker.losses[0]
        assert not worker.member.send(Leaving(instance="d0", generation=Generation(1)))
        assert await welcome(server, Generation(2)) != peer, "another life has another connection"
        await until(lambda: worker.member.is_joined)
        assert worker.member.generation == 2


async def test_a_gateway_that_died_is_noticed_before_the_lease_ends_and_its_successor_joined():
    lease = Welcome(epoch=EPOCH, heartbeat_s=0.02, lease_s=1000.0)
    server = make_server()
    endpoint = await server.start()
    worker = Worker(endpoint)
    scope = TaskScope("test")
    scope.start(worker.member.run(), "member")
    await welcome(server, Generation(1), lease)
    await server.close()
    await until(lambda: worker.losses)
    assert "connection" in worker.losses[0]
    successor = make_server(endpoint)
    await successor.start()
    await welcome(successor, Generation(2), Welcome(epoch=Generation(100), heartbeat_s=0.02, lease_s=0.3))
    await scope.close()
    await successor.close()


async def test_a_gateway_that_goes_away_is_no_alarm(caplog):
    # It does so first at every normal stop of a mesh.
    caplog.set_level(logging.INFO)
    async with joined() as (server, worker, _):
        await server.close()
        await until(lambda: worker.losses)
    mentions = [record.levelname for record in caplog.records if "lost the membership" in record.message]
    assert mentions == ["INFO"]
    assert "WARNING" not in [record.levelname for record in caplog.records]


async def test_that_no_gateway_answers_is_told_once(caplog):
    clock = HastyClock()
    worker = Worker("tcp://127.0.0.1:9", clock)
    scope = TaskScope("test")
    scope.start(worker.member.run(), "member")
    await until(lambda: clock.now() == clock.END_S)
    await scope.close()
    assert [record.message for record in caplog.records if "no gateway has answered" in record.message] == [
        "not in the mesh: no gateway has answered; does one run, with the same gateway.control? "
        "The attempts to join go on"
    ]


class HastyClock:
    """Two seconds pass with every look at it, so that nothing is waited for, until it stands still."""

    END_S = 200.0

    def __init__(self) -> None:
        self._looks = itertools.count()

    def now(self) -> float:
        return min(2.0 * next(self._looks), self.END_S)


@pytest.mark.parametrize("said", [HeartbeatAck(epoch=Generation(5)), Rejected(reason="your lease ended")])
async def test_what_was_said_to_a_lost_life_is_not_taken_for_the_next(said):
    async with joined() as (server, worker, peer):
        for message in (said, WELCOME, Abort(request=RequestId("stale"))):
            server.send(peer, message)
        await welcome(server, Generation(2))
        assert len(worker.losses) == 1
        assert worker.messages == []


async def test_a_fatal_rejection_ends_run_with_the_reason():
    async with joined() as (server, worker, peer):
        server.send(peer, Rejected(reason="the mesh serves another model", fatal=True))
        with pytest.raises(MembershipRejected, match="another model"):
            await worker.running


async def test_leaving_is_said_and_ends_run():
    async with joined() as (server, worker, _):
        await worker.member.leave()
        await worker.running
        said = []
        while not said or not isinstance(said[-1], Leaving):
            said.append((await server.receive())[1])
        assert said[-1] == Leaving(instance="d0", generation=Generation(1))
        assert worker.losses == []


async def test_leaving_is_said_even_when_run_is_cancelled_at_once():
    async with joined() as (server, worker, _):
        await worker.member.leave()
        worker.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker.running
        while not isinstance((await server.receive())[1], Leaving):
            pass


async def test_a_message_that_cannot_be_sent_gives_up_the_membership():
    async with joined() as (server, worker, _):
        member = worker.member
        await server.close()
        await until(lambda: not member.send(Leaving(instance="d0", generation=Generation(1))))
        await until(lambda: worker.losses)
        assert not member.is_joined
