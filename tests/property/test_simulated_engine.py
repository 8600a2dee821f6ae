"""The simulated engine against the live one: the same functions, equal plans, loads and gaps."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_case import Gaps, bounds, room

import services.engine.core
import services.scheduling.continuous
import services.simulator.engine.core
from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.engine.api import BlocksReserved, DecodeJob, EngineEvent, EngineLoad, PrefillJob, TokensSampled
from services.engine.core import EngineCore
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.continuous import BatchLimits, StepPlan, Work
from services.simulator.engine import events as simulated
from services.simulator.engine.engine import SimulatedEngine
from services.simulator.engine.timing import DecodeLine, StepTimer


@pytest.mark.parametrize("rule", ["admit", "grow", "share_budget"])
def test_live_and_simulated_decisions_are_the_same_functions(rule: str) -> None:
    of_simulator = vars(services.simulator.engine.core)[rule]
    assert of_simulator is vars(services.scheduling.continuous)[rule]
    # What `decide` calls is looked up where it was defined, and `decide` is what the live engine calls.
    decide = vars(services.engine.core)["decide"]
    assert decide is services.scheduling.continuous.decide
    assert decide.__globals__[rule] is of_simulator
    assert rule in decide.__code__.co_names


Held = tuple[int, ...]


class RecordingCore(EngineCore):
    """Keeps every plan that is not empty, and what is held once its blocks are arranged."""

    steps_log: list[tuple[StepPlan, Held]]

    def _arrange(self, plan: StepPlan) -> None:
        super()._arrange(plan)
        if plan != StepPlan():
            self.steps_log.append((plan, held(self.load())))


def held(load: EngineLoad | simulated.SimulatedLoad) -> Held:
    return (
        load.waiting,
        load.running,
        load.queued_tokens,
        load.context_tokens,
        load.blocks_used,
        load.steps,
    )


class Second(StepTimer):
    """Every step takes a second."""

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        return 1.0

    def decode_line(self, decodes: int) -> DecodeLine:
        return DecodeLine(1.0, 0.0)


class Pair:
    """The same jobs for a live engine and a simulated one, and what both decided."""

    def __init__(self, limits: BatchLimits, num_blocks: int) -> None:
        runner = DeterministicRunner(deterministic_layout(block_size=limits.block_size, layers=1), num_blocks)
        self.live_events: list[EngineEvent] = []
        self.live = RecordingCore(runner, limits, self.live_events.append, prefix_cache=False)
        self.live.steps_log = []
        self.log: list[tuple[StepPlan, Held]] = []
        self.events: list[simulated.EngineEvent] = []
        self.gaps = Gaps()
        self.engine = SimulatedEngine(
            limits, num_blocks, Second(), gaps=self.gaps, jumps=False, checked=True, on_plan=self._note
        )
        self.now = 0.0
        self._last: dict[RequestId, int] = {}
        self.live_gaps: list[float] = []

    def _note(self, plan: StepPlan) -> None:
        self.log.append((plan, held(self.engine.load(self.now))))

    def submit(self, key: int, job: "Job") -> None:
        request, prompt = RequestId(str(key)), tuple(range(job.prompt))
        if job.output:
            greedy = SamplingParams(temperature=0.0)
            self.live.submit(DecodeJob(request, prompt, job.split, greedy, max_tokens=job.output))
            self.engine.submit_decode(key, job.prompt, job.split, job.output, self.now)
        else:
            self.live.submit(PrefillJob(request, prompt))
            self.engine.submit_prefill(key, job.prompt, self.now)

    def kv_landed(self, key: int) -> None:
        self.live.kv_landed(RequestId(str(key)))
        self.engine.kv_landed(key, self.now)

    def end(self, key: int) -> None:
        self.live.end(RequestId(str(key)))
        self.engine.end(key, self.now)

    def step(self) -> bool:
        """Each makes the next step that computes anything, after any that do not; False if neither can."""
        before, seen = self.live.load().steps, len(self.live_events)
        while (changed := self.live.step()) and self.live.load().steps == before:
            pass
        self._measure(before + 1, self.live_events[seen:])
        due = self.engine.next_event_at()
        if due is not None:
            self.now = due
            self.events += self.engine.advance(due)
        return changed or self.engine.next_event_at() is not None

    def _measure(self, step: int, events: list[EngineEvent]) -> None:
        """The gaps of the live engine, if each of its steps took a second."""
        for event in events:
            for item in event.items if isinstance(event, TokensSampled) else ():
                if item.request in self._last:
                    self.live_gaps.append(float(step - self._last[item.request]))
                self._last[item.request] = step

    def assert_equal(self) -> None:
        """Each has decided, held and said what the other has."""
        assert self.log == self.live.steps_log
        assert held(self.engine.load(self.now)) == held(self.live.load())
        assert sorted(self.gaps.all) == sorted(self.live_gaps)

    def reserved(self) -> list[int]:
        """Jobs that have had their blocks, as the live engine says; asserts that the simulated one says the same."""
        live = [int(event.request) for event in self.live_events if isinstance(event, BlocksReserved)]
        assert live == [event.key for event in self.events if isinstance(event, simulated.BlocksReserved)]
        return live


@dataclass
class Job:
    prompt: int
    output: int
    """0: a prefill job."""
    split: int = 0
    after: int = 0
    """Steps to wait before it comes."""


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    """Few long prompts, or many jobs that grow: these are preempted."""
    most_jobs, longest, most_output = draw(st.sampled_from([(9, 24, 14), (12, 6, 30)]))
    made = []
    for _ in range(draw(st.integers(1, most_jobs))):
        prompt = draw(st.integers(1, longest))
        split = draw(st.sampled_from([0, 0, 0, prompt - 1, prompt // 2]))
        output = 0 if draw(st.integers(0, 7)) == 0 else draw(st.integers(1, most_output))
        made.append(Job(prompt, output, split, draw(st.integers(0, 3))))
    return made


@given(work=jobs(), limits=bounds(), spare=st.integers(0, 4), data=st.data())
def test_plans_and_loads_equal_those_of_the_live_engine(
    work: list[Job], limits: BatchLimits, spare: int, data: st.DataObject
) -> None:
    def one_in(count: int) -> bool:
        return data.draw(st.integers(1, count)) == 1

    pair = Pair(limits, room(work, limits, spare))
    todo = list(enumerate(work))
    wait = todo[0][1].after
    handled: set[int] = set()
    for _ in range(2_000):
        while todo and wait <= 0:
            pair.submit(*todo.pop(0))
            wait = todo[0][1].after if todo else 0
        wait -= 1
        # A hand-off lands, or a prefill job is ended, some steps after its blocks were reserved.
        for key in [key for key in pair.reserved() if key not in handled and one_in(3)]:
            handled.add(key)
            (pair.kv_landed if work[key].output else pair.end)(key)
        if one_in(30):
            pair.end(data.draw(st.integers(0, len(work) - 1)))
        if not pair.step() and not todo and handled.issuperset(pair.reserved()):
            break
    else:
        raise AssertionError("the engines do not come to an end")
    pair.assert_equal()
    assert pair.live.load().blocks_used == pair.live.load().waiting == 0


def test_an_older_prompt_whose_kv_lands_is_served_before_newer_ones() -> None:
    pair = Pair(BatchLimits(block_size=4, max_sequences=4, budget=8), 100)
    for key, split in enumerate((1, 0, 0)):
        pair.submit(key, Job(prompt=40, output=2, split=split))
    pair.step()
    pair.kv_landed(0)
    while pair.step():
        pass
    pair.assert_equal()
    shares = [plan.work for plan, _ in pair.log[:2]]
    assert shares == [(Work(1, 4), Work(2, 4)), (Work(0, 4), Work(1, 2), Work(2, 2))]


def test_one_that_waits_is_admitted_after_the_step_that_preempts_another() -> None:
    # Blocks of 4 tokens. Jobs 0 and 1 take 2 blocks each, 2 takes one, 3 takes 5, and one is left. As soon as 0 and 1
    # have landed both need a third: one takes the last, for the other 2 gives way. Four steps later both need a
    # fourth: 3 gives way, whose blocks are enough for them and for 2, but not in that step.
    pair = Pair(BatchLimits(block_size=4, max_sequences=8, budget=32), 11)
    for key in (0, 1):
        pair.submit(key, Job(prompt=8, output=9, split=7))
    pair.step()
    pair.submit(2, Job(prompt=1, output=20))
    pair.step()
    pair.submit(3, Job(prompt=20, output=10, split=16))
    pair.step()
    pair.kv_landed(0)
    pair.kv_landed(1)
    pair.step()
    pair.step()
    pair.kv_landed(3)
    while pair.step():
        pass
    pair.assert_equal()
    moved = [(plan.preempt, plan.admit) for plan, _ in pair.log if plan.preempt or plan.admit]
    assert moved[:6] == [((), (0, 1)), ((), (2,)), ((), (3,)), ((2,), ()), ((3,), ()), ((), (2,))]


def test_the_gap_of_one_preempted_twice_between_two_tokens_is_the_whole_pause() -> None:
    # 7 blocks of 4 tokens. Job 2 gives way in step 9, after its fifth token. It is admitted again when 1 has finished,
    # and gives way in step 17, while it still computes its 9 known tokens one by one. 0 finishes in step 23; the sixth
    # token of 2 comes in step 32.
    pair = Pair(BatchLimits(block_size=4, max_sequences=8, budget=32, chunk=1), 7)
    for key, output in enumerate((20, 8, 8)):
        pair.submit(key, Job(prompt=4, output=output))
    while pair.step():
        pass
    pair.assert_equal()
    assert [(index + 1, plan.preempt) for index, (plan, _) in enumerate(pair.log) if plan.preempt] == [
        (9, (2,)),
        (17, (2,)),
    ]
    assert max(pair.gaps.all) == 32 - 8
