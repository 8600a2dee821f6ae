"""A worker's last act: it leaves whatever has become of the gateway, and never waits for an engine that is broken."""

import asyncio
import itertools

import pytest

from common.clock import SystemClock
from common.ids import Generation
from common.messages.control import Load, Register, ToWorker
from services.engine.worker import Worker
from tests.unit.common.bus_fixtures import registration

NOBODY = "tcp://127.0.0.1:9"


class ScriptedJobs:
    """Holds one job until told otherwise."""

    def __init__(self) -> None:
        self.is_draining = False
        self.idle = asyncio.Event()
        self.drain_begun = asyncio.Event()
        self.dropped = 0
        self.ends_when_dropped = True

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

    def load(self) -> Load:
        return Load()


def describe(generation: Generation) -> Register:
    return registration(generation)


class Bench:
    def __init__(self, *, grace_s: float = 60.0) -> None:
        numbers = itertools.count(1)
        self.jobs = ScriptedJobs()
        self.stop = asyncio.Event()
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        worker = Worker(self.jobs, describe, NOBODY, lambda: Generation(next(numbers)), SystemClock(), grace_s=grace_s)
        self.serving = asyncio.ensure_future(worker.serve(self.stop, self.broken))

    async def served(self) -> None:
        async with asyncio.timeout(10):
            await self.serving


async def test_it_leaves_without_a_gateway() -> None:
    bench = Bench()
    bench.jobs.idle.set()
    bench.stop.set()
    await bench.served()
    assert bench.jobs.is_draining
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


@pytest.mark.parametrize("grace_s", [60.0, 0.0])
async def test_a_broken_engine_ends_it_while_it_drains(grace_s: float) -> None:
    bench = Bench(grace_s=grace_s)
    bench.jobs.ends_when_dropped = False
    bench.stop.set()
    async with asyncio.timeout(10):
        await bench.jobs.drain_begun.wait()
    bench.broken.set_exception(RuntimeError("the engine core broke"))
    with pytest.raises(RuntimeError, match="the engine core broke"):
        await bench.served()
