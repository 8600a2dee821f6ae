"""The engine's thread: where things run, when it sleeps, and what happens when something in it breaks."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from common.clock import SystemClock
from common.errors import ModelError
from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.engine.api import BlocksReserved, DecodeJob, EngineEvent, JobEnded, TokensSampled
from services.engine.runner import Runner
from services.engine.thread import EngineThread
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.continuous import BatchLimits

LIMITS = BatchLimits(block_size=4, max_sequences=4, budget=64)


class CountingClock(SystemClock):
    """Notes how often it is asked: twice or once for each step."""

    def __init__(self) -> None:
        self.asked = 0

    def now(self) -> float:
        self.asked += 1
        return super().now()


class Bench:
    def __init__(self, build: Callable[[], Runner], on_event: Callable[[EngineEvent], None] | None = None) -> None:
        self.events: list[EngineEvent] = []
        self.clock = CountingClock()
        self.engine = EngineThread(build, LIMITS, on_event or self.events.append, self.clock)

    def has(self, kind: type[EngineEvent], request: str = "r") -> bool:
        return any(isinstance(event, kind) and getattr(event, "request", None) == request for event in self.events)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - a condition of another thread
                await asyncio.sleep(0.001)


@asynccontextmanager
async def running(
    build: Callable[[], Runner], on_event: Callable[[EngineEvent], None] | None = None
) -> AsyncIterator[Bench]:
    bench = Bench(build, on_event)
    await bench.engine.start()
    try:
        yield bench
    finally:
        await bench.engine.stop()


def runner(num_blocks: int = 16, **faults: object) -> Runner:
    return DeterministicRunner(deterministic_layout(block_size=4), num_blocks, **faults)  # type: ignore[arg-type]


def job(request: str = "r", length: int = 6, split: int = 0, max_tokens: int = 3) -> DecodeJob:
    return DecodeJob(RequestId(request), tuple(range(length)), split, SamplingParams(temperature=0.0), max_tokens)


async def test_models_and_forwards_run_on_the_thread_and_events_come_to_the_loop() -> None:
    built, forwards, events = set[int](), set[int](), set[int]()

    def build() -> Runner:
        built.add(threading.get_ident())
        return runner(gate=lambda: forwards.add(threading.get_ident()))

    ended = asyncio.Event()

    def on_event(event: EngineEvent) -> None:
        events.add(threading.get_ident())
        if isinstance(event, JobEnded):
            ended.set()

    async with running(build, on_event) as bench:
        bench.engine.submit(job())
        async with asyncio.timeout(10):
            await ended.wait()
    assert events == {threading.get_ident()}
    assert len(forwards) == 1
    assert built == forwards != events


async def test_it_sleeps_while_nothing_can_be_computed_and_wakes_for_what_can() -> None:
    async with running(lambda: runner(num_blocks=3)) as bench:
        bench.engine.submit(job("r", length=12, split=5, max_tokens=1))
        bench.engine.submit(job("next", length=4, max_tokens=1))
        await bench.until(lambda: bench.has(BlocksReserved))
        await bench.engine.check_integrity()
        asked = bench.clock.asked
        await asyncio.sleep(0.05)
        # One look after the command that asked for the check (its begin and its end), and no more.
        assert bench.clock.asked <= asked + 2
        bench.engine.end(RequestId("r"))
        await bench.until(lambda: bench.has(JobEnded, "next"))
        assert any(isinstance(event, TokensSampled) for event in bench.events)
    assert bench.engine.load().blocks_used == 0


async def test_an_event_that_cannot_be_handled_ends_the_process() -> None:
    def broken(event: EngineEvent) -> None:
        raise KeyError("a fault of the service")

    async with running(runner, broken) as bench:
        bench.engine.submit(job())
        with pytest.raises(KeyError, match="a fault of the service"):
            await asyncio.wait_for(bench.engine.failed, 10)


class Panic(BaseException):
    """As PyO3 raises it when a library in Rust panics."""


@pytest.mark.parametrize("fault", [RuntimeError, Panic, SystemExit, StopIteration])
async def test_a_core_that_breaks_says_so_to_all_who_wait(fault: type[BaseException]) -> None:
    class Torn(DeterministicRunner):
        def copy_block(self, source: int, target: int) -> None:
            raise fault("a fault between two steps")

    async with running(lambda: Torn(deterministic_layout(block_size=4), 16)) as bench:
        choices = DecodeJob(RequestId("r"), (1, 2), 0, SamplingParams(), 4, choices=2)
        bench.engine.submit(choices)
        with pytest.raises(RuntimeError, match="between two steps"):
            await asyncio.wait_for(asyncio.shield(bench.engine.failed), 10)
        with pytest.raises(RuntimeError, match="between two steps"):
            await asyncio.wait_for(bench.engine.check_integrity(), 10)


async def test_what_loading_raises_comes_out_of_start() -> None:
    def build() -> Runner:
        raise ModelError("no such model")

    bench = Bench(build)
    with pytest.raises(ModelError, match="no such model"):
        await bench.engine.start()
    await bench.engine.stop()


async def test_a_panic_while_loading_comes_out_of_start() -> None:
    def build() -> Runner:
        raise Panic("in a library that reads weights")

    bench = Bench(build)
    with pytest.raises(RuntimeError, match="in a library that reads weights"):
        await asyncio.wait_for(bench.engine.start(), 10)
    await bench.engine.stop()


async def test_a_core_that_cannot_be_made_comes_out_of_start() -> None:
    bench = Bench(lambda: object())  # type: ignore[arg-type,return-value]
    with pytest.raises(AttributeError, match="num_blocks"):
        await asyncio.wait_for(bench.engine.start(), 10)
    await bench.engine.stop()


async def test_a_start_that_is_given_up_ends_quietly() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    may_load = threading.Event()

    def build() -> Runner:
        may_load.wait(10)
        return runner()

    bench = Bench(build)
    starting = asyncio.ensure_future(bench.engine.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    may_load.set()
    await bench.engine.stop()
    await asyncio.sleep(0)
    assert complaints == []
