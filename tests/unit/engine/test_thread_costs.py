"""The engine's thread measures its steps: what each was, how long it took, and how far that is from the costs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from common.clock import ManualClock
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from common.costs.step import Step
from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.engine.api import DecodeJob, EngineEvent, JobEnded, PrefillJob
from services.engine.core import EngineCore
from services.engine.measuring.measure import MeasurementRefused
from services.engine.thread import EngineThread
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.continuous import BatchLimits

STEP_S = 0.05
LIMITS = BatchLimits(block_size=4, max_sequences=4, budget=16)
COSTS = InstanceCosts(
    prefill=PrefillCost(STEP_S, 0.0), mixed=MixedStepCost(STEP_S, 0.0, 0.0, 0.0), decode=DecodeStepCost(STEP_S, 0, 0)
)
"""What the steps below take by the clock: all the same."""


class Bench:
    """An engine on a clock that only its steps move: by STEP_S each, times `speed`."""

    def __init__(self, slowdown: float, gate: Callable[[], None] | None = None) -> None:
        self.clock = ManualClock()
        self.slower = 1.0
        self.events: list[EngineEvent] = []
        self.engine = EngineThread(
            lambda: DeterministicRunner(
                deterministic_layout(block_size=4), 256, step_seconds=STEP_S, sleep=self._compute, gate=gate
            ),
            LIMITS,
            self.events.append,
            self.clock,
            slowdown=slowdown,
            sleep=self.clock.advance,
        )

    def _compute(self, seconds: float) -> None:
        self.clock.advance(seconds * self.slower)

    async def decode(self, steps: int) -> None:
        """Serve a request that takes so many steps."""
        before = len(self.events)
        self.engine.submit(DecodeJob(RequestId("r"), (1, 2, 3), 0, SamplingParams(temperature=0.0), steps))
        async with asyncio.timeout(10):
            while not any(isinstance(event, JobEnded) for event in self.events[before:]):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        # The job's last event is emitted within the step; this comes after it.
        await self.engine.check_integrity()


@asynccontextmanager
async def running(slowdown: float = 1.0, gate: Callable[[], None] | None = None) -> AsyncIterator[Bench]:
    bench = Bench(slowdown, gate)
    await bench.engine.start()
    try:
        yield bench
    finally:
        await bench.engine.stop()


async def test_a_device_that_slows_by_half_in_mid_run_is_followed_there_and_back() -> None:
    async with running() as bench:
        bench.engine.use_costs(COSTS)
        await bench.decode(50)
        assert bench.engine.cost_factor == pytest.approx(1.0)
        bench.slower = 2.0
        await bench.decode(10)
        assert 1.5 < bench.engine.cost_factor < 1.9
        await bench.decode(40)
        assert bench.engine.cost_factor == pytest.approx(2.0, rel=0.02)
        bench.slower = 1.0
        await bench.decode(60)
        assert bench.engine.cost_factor == pytest.approx(1.0, rel=0.02)


async def test_the_emulated_slowdown_is_part_of_a_step() -> None:
    """A profile of the emulated device is of the stretched steps, so that the factor stays 1."""
    async with running(slowdown=3.0) as bench:
        seconds = await bench.engine.measure(Step(StepShape(decodes=2, decode_context=9)), 4)
        assert seconds == pytest.approx([3 * STEP_S] * 4)
        bench.engine.use_costs(COSTS.scaled(3.0))
        await bench.decode(30)
        assert bench.engine.cost_factor == pytest.approx(1.0)


async def test_without_costs_there_is_nothing_to_correct() -> None:
    async with running() as bench:
        bench.slower = 5.0
        await bench.decode(30)
        assert bench.engine.cost_factor == 1.0


async def test_measured_steps_are_no_steps_of_the_device_in_service() -> None:
    async with running() as bench:
        bench.engine.use_costs(COSTS)
        bench.slower = 4.0
        assert await bench.engine.measure(Step(StepShape(8), is_prefill=True), 20) == pytest.approx([0.2] * 20)
        assert bench.engine.cost_factor == 1.0
        assert bench.engine.load().steps == 0


async def test_a_job_that_comes_meanwhile_is_served_at_once() -> None:
    """The measurement breaks off after the step in progress."""
    bench: Bench

    def submit_a_job() -> None:
        if bench.clock.now() > 2.5 * STEP_S and not submitted:
            submitted.append(True)
            bench.engine.submit(DecodeJob(RequestId("r"), (1, 2, 3), 0, SamplingParams(temperature=0.0), 2))

    submitted: list[bool] = []
    async with running(gate=submit_a_job) as bench:
        with pytest.raises(MeasurementRefused, match="measure again when it idles"):
            await bench.engine.measure(Step(StepShape(8)), 50)
        async with asyncio.timeout(10):
            while not any(isinstance(event, JobEnded) for event in bench.events):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            # What the engine holds is told after the step, of whose events this was one.
            while bench.engine.load().blocks_used:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert bench.clock.now() < 10 * STEP_S


async def test_two_who_measure_do_not_interrupt_each_other() -> None:
    async with running() as bench:
        first = asyncio.ensure_future(bench.engine.measure(Step(StepShape(8)), 20))
        await asyncio.sleep(0)
        with pytest.raises(MeasurementRefused, match="measures for somebody else"):
            await bench.engine.measure(Step(StepShape(8)), 20)
        assert len(await first) == 20
        assert len(await bench.engine.measure(Step(StepShape(8)), 2)) == 2


async def test_a_broken_engine_measures_nothing() -> None:
    async with running() as bench:
        bench.engine._inbox.put(lambda core: core.no_such_thing)  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match="no_such_thing"):
            await asyncio.wait_for(bench.engine.measure(Step(StepShape(8)), 1), 10)


def computed(limits: BatchLimits, *jobs: PrefillJob | DecodeJob, steps: int) -> list[Step | None]:
    core = EngineCore(DeterministicRunner(deterministic_layout(block_size=4), 64), limits, lambda event: None)
    for job in jobs:
        core.submit(job)
    found: list[Step | None] = []
    for _ in range(steps):
        core.step()
        found.append(core.computed)
    return found


def decode_job(name: str, length: int, max_tokens: int) -> DecodeJob:
    return DecodeJob(RequestId(name), tuple(range(length)), 0, SamplingParams(temperature=0.0), max_tokens)


def test_the_core_tells_what_each_step_computed() -> None:
    jobs = decode_job("a", 5, 4), decode_job("b", 30, 2)
    assert computed(LIMITS, *jobs, steps=6) == [
        Step(StepShape(chunk_tokens=5 + 8 + 3)),
        Step(StepShape(15, 11, 1, 5)),
        Step(StepShape(4, 26, 1, 6)),
        Step(StepShape(0, 0, 2, 7 + 30)),
        None,
        None,
    ]


def test_only_a_whole_prompt_alone_is_what_t_pre_is_about() -> None:
    prompt = PrefillJob(RequestId("p"), tuple(range(20)))
    whole = BatchLimits(4, 4, prompts_per_step=1)
    assert computed(whole, prompt, steps=2) == [Step(StepShape(20), is_prefill=True), None]
    chunked = BatchLimits(4, 4, chunk=12, prompts_per_step=1)
    assert computed(chunked, prompt, steps=2) == [Step(StepShape(12)), Step(StepShape(8, 12))]
    sampled = decode_job("d", 20, 1)
    assert computed(whole, sampled, steps=1) == [Step(StepShape(20))]
    two = [PrefillJob(RequestId(name), tuple(range(6))) for name in "ab"]
    assert computed(BatchLimits(4, 4), *two, steps=1) == [Step(StepShape(12))]


def test_a_step_that_failed_computed_nothing() -> None:
    core = EngineCore(
        DeterministicRunner(deterministic_layout(block_size=4), 64, fail_at_step=1), LIMITS, lambda event: None
    )
    core.submit(decode_job("a", 5, 4))
    core.step()
    assert core.computed is not None
    core.step()
    assert core.computed is None
