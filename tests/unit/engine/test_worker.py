"""A worker's last act: it leaves whatever has become of the gateway, and never waits for an engine that is broken."""

import asyncio
import itertools
from collections.abc import Callable

import pytest

from common.clock import SystemClock
from common.ids import Generation
from common.messages.control import Load, Register, ToWorker, Welcome
from services.engine.worker import Worker
from tests.unit.common.bus_fixtures import make_server, registration, until

NOBODY = "tcp://127.0.0.1:9"


class ScriptedJobs:
    """Holds one job until told otherwise."""

    def __init__(self) -> None:
        self.is_leaving = False
        self.idle = asyncio.Event()
        self.drain_begun = asyncio.Event()
        self.dropped = 0
        self.ends_when_dropped = True
        self.held = Load()

    def on_message(self, message: ToWorker) -> None:
        raise AssertionError(f"nobody can have said {message!r}")

    def begin(self, generation: Generation) -> None:
        pass

    async def drop_all(self) -> None:
        self.dropped += 1
        if self.ends_when_dropped:
            self.idle.set()
        await self.idle.wait()

    async def until_idle(self) -> None:
        self.drain_begun.set()
        await self.idle.wait()

    def prefix_news(self) -> None:
        return None

    def load(self) -> Load:
        return self.held


def describe(generation: Generation) -> Register:
    return registration(generation)


class Bench:
    def __init__(self, *, grace_s: float = 60.0, control: str = NOBODY) -> None:
        numbers = itertools.count(1)
        self.jobs = ScriptedJobs()
        self.stop = asyncio.Event()
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        draw = lambda: Generation(next(numbers))  # noqa: E731
        worker = Worker(self.jobs, describe, control, draw, SystemClock(), grace_s=grace_s)
        self.serving = asyncio.ensure_future(worker.serve(self.stop, self.broken))

    async def served(self) -> None:
        async with asyncio.timeout(10):
            await self.serving


async def test_it_leaves_without_a_gateway() -> None:
    bench = Bench()
    bench.jobs.idle.set()
    bench.stop.set()
    await bench.served()
    assert bench.jobs.is_leaving
    assert bench.jobs.dropped == 1


async def test_jobs_may_finish_and_are_dropped_after_the_grace() -> None:
    bench = Bench(grace_s=0.01)
    bench.stop.set()
    await bench.served()
    assert bench.jobs.dropped == 1


async def test_a_broken_engine_ends_it() -> None:
    bench = Bench()
    bench.broken.set_exception(RuntimeError("the engine core broke"))
    with pytest.raises(RuntimeError, match="the engine core broke"):
        await bench.served()
    assert bench.jobs.dropped == 0


@pytest.mark.parametrize(
    ("grace_s", "reached"),
    [(60.0, lambda jobs: jobs.drain_begun.is_set()), (0.01, lambda jobs: jobs.dropped)],
    ids=["waiting", "dropping"],
)
async def test_a_broken_engine_ends_it_while_it_drains(
    grace_s: float, reached: Callable[[ScriptedJobs], object]
) -> None:
    bench = Bench(grace_s=grace_s)
    bench.jobs.ends_when_dropped = False
    bench.stop.set()
    await until(lambda: reached(bench.jobs))
    bench.broken.set_exception(RuntimeError("the engine core broke"))
    with pytest.raises(RuntimeError, match="the engine core broke"):
        await bench.served()


@pytest.mark.parametrize(
    ("held", "warnings"),
    [
        (Load(), []),
        (Load(waiting=2, running=3), ["dropping 5 requests: the connection to the gateway broke"]),
    ],
)
async def test_only_what_the_loss_of_the_gateway_costs_is_an_alarm(
    held: Load, warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server()
    bench = Bench(control=await server.start())
    bench.jobs.held = held
    peer, _ = await server.receive()
    server.send(peer, Welcome(epoch=Generation(1), heartbeat_s=0.02, lease_s=1000.0))
    await server.receive()
    await server.close()
    await until(lambda: bench.jobs.dropped)
    bench.stop.set()
    await bench.served()
    assert [record.message for record in caplog.records if record.name == "services.engine.worker"] == warnings
