"""Any jobs at any times: a pipeline of one stage is a SimulatedEngine, and one of several loses nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.scheduling.continuous import BatchLimits, admit
from services.simulator.engine.engine import SimulatedEngine
from services.simulator.engine.events import BlocksReserved, EngineEvent, Finished, FirstToken, SimulatedLoad
from services.simulator.engine.timing import DecodeLine, StepTimer
from services.simulator.links import LinkSpec
from services.simulator.pipeline.line import PipelineSpec
from services.simulator.pipeline.pipeline import PipelineEngine

INSTANT = LinkSpec(float("inf"), 0.0)
Engine = SimulatedEngine | PipelineEngine


class Whole(StepTimer):
    """Whole seconds, so that sums are exact: of a step, a token, and a token of context."""

    def __init__(self, step: int, token: int, context: int) -> None:
        self._step, self._token, self._context = step, token, context

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        tokens = decodes + sum(count for count, _ in chunks)
        contexts = decode_context + sum(before for _, before in chunks)
        return float(self._step + self._token * tokens + self._context * contexts)

    def decode_line(self, decodes: int) -> DecodeLine:
        return DecodeLine(float(self._step + self._token * decodes), float(self._context))


NOTHING = Whole(0, 0, 0)


class GapCounts:
    def __init__(self) -> None:
        self.counts: Counter[float] = Counter()

    def record_gap(self, seconds: float, count: int) -> None:
        self.counts[seconds] += count

    def record_run(self, first: float, increment: float, steps: int, count: int) -> None:
        for step in range(steps):
            self.counts[first + increment * step] += count


@dataclass
class Job:
    prompt: int
    output: int
    split: int
    after: int
    """Seconds to wait before it comes."""
    ended_after: int | None
    """Seconds from then until it is ended, whatever it does."""
    landed_after: int
    """Seconds from its reservation until its KV is there."""


@st.composite
def jobs(draw: st.DrawFn, *, may_end: bool) -> list[Job]:
    made = []
    for _ in range(draw(st.integers(1, 10))):
        prompt = draw(st.integers(1, 24))
        made.append(
            Job(
                prompt,
                draw(st.integers(1, 14)),
                draw(st.sampled_from([0, 0, prompt - 1, prompt // 2])),
                draw(st.sampled_from([0, 0, 1, 7, 100])),
                draw(st.sampled_from([None, None, 0, 3, 30])) if may_end else None,
                draw(st.integers(0, 9)),
            )
        )
    return made


@st.composite
def bounds(draw: st.DrawFn) -> BatchLimits:
    slots = draw(st.integers(1, 6))
    return BatchLimits(
        block_size=draw(st.sampled_from([1, 2, 4, 16])),
        max_sequences=slots,
        budget=draw(st.sampled_from([None, slots, slots + 1, slots + 7])),
    )


timers = st.builds(Whole, st.integers(1, 5), st.integers(0, 2), st.integers(0, 1))


def room(work: list[Job], limits: BatchLimits, spare: int) -> int:
    return max(limits.blocks_for(job.prompt + job.output - 1) for job in work) + spare


@dataclass
class Course:
    """What came of the jobs."""

    events: list[EngineEvent]
    loads: list[tuple[float, SimulatedLoad]]


def run(engine: Engine, work: list[Job]) -> Course:
    """All jobs to their end; commands at one time are given before the engine is advanced to it."""
    commands: list[tuple[float, int, str]] = []
    at = 0.0
    for key, job in enumerate(work):
        at += job.after
        commands.append((at, key, "submit"))
        if job.ended_after is not None:
            commands.append((at + job.ended_after, key, "end"))
    course = Course([], [])
    for _ in range(20_000):
        due = engine.next_event_at()
        commands.sort(key=lambda command: command[0])
        if commands and (due is None or commands[0][0] <= due):
            give(engine, work, commands.pop(0))
        elif due is None:
            return course
        else:
            events = engine.advance(due)
            reserved = [event for event in events if isinstance(event, BlocksReserved)]
            commands += [(due + work[event.key].landed_after, event.key, "land") for event in reserved]
            course.events += events
            if isinstance(engine, PipelineEngine):
                check_no_chance_is_missed(engine, due)
            course.loads.append((due, engine.load(due)))
    raise AssertionError("the engine does not come to an end")


def give(engine: Engine, work: list[Job], command: tuple[float, int, str]) -> None:
    at, key, what = command
    job = work[key]
    if what == "submit":
        engine.submit_decode(key, job.prompt, job.split, job.output, at)
    elif what == "land":
        engine.kv_landed(key, at)
    else:
        engine.end(key, at)


def check_no_chance_is_missed(engine: PipelineEngine, now: float) -> None:
    """With the first stage free and a micro-batch without a step, nobody could be admitted or computed."""
    books = engine._books
    idle = [batch for batch in books.batches if batch.step is None]
    if not idle or engine._line.free_at > now:
        return
    assert not any(batch.pending for batch in idle)
    running = sum(batch.crowd.count + len(batch.prompts) for batch in books.batches)
    holders = len(books.by_key) - len(books.waiting)
    assert admit(books.waiting.known(), holders, running, books.num_blocks - books.used, books.limits) == 0


@given(work=jobs(may_end=True), limits=bounds(), timer=timers, spare=st.integers(0, 4), stages=st.integers(0, 2))
def test_stages_that_take_no_time_leave_a_simulated_engine(
    work: list[Job], limits: BatchLimits, timer: Whole, spare: int, stages: int
) -> None:
    blocks = room(work, limits, spare)
    one, two = GapCounts(), GapCounts()
    single = SimulatedEngine(limits, blocks, timer, gaps=one, jumps=False, checked=True)
    spec = PipelineSpec((NOTHING,) * stages, (1,) * (stages + 1), 8, INSTANT, micro_batches=1)
    pipeline = PipelineEngine(limits, blocks, timer, spec, gaps=two, checked=True)
    assert run(pipeline, work) == run(single, work)
    assert two.counts == one.counts
    assert pipeline.counters == single.counters


@given(work=jobs(may_end=False), timer=timers, micro_batches=st.integers(2, 3))
def test_a_request_alone_never_sees_the_other_micro_batches(work: list[Job], timer: Whole, micro_batches: int) -> None:
    for job in work:
        job.after = 10_000
    limits = BatchLimits(block_size=4, max_sequences=6, budget=8)
    single = SimulatedEngine(limits, 20, timer, jumps=False)
    spec = PipelineSpec((NOTHING,), (1, 0), 8, INSTANT, micro_batches=micro_batches)
    pipeline = PipelineEngine(limits, 20, timer, spec, checked=True)
    assert run(pipeline, work).events == run(single, work).events


@given(
    work=jobs(may_end=True),
    limits=bounds(),
    stages=st.lists(timers, min_size=2, max_size=3),
    link=st.builds(LinkSpec, st.sampled_from([8.0, 64.0]), st.integers(0, 3).map(float)),
    micro_batches=st.integers(1, 3),
    spare=st.integers(0, 4),
)
def test_nothing_is_lost_and_nothing_is_made(
    work: list[Job], limits: BatchLimits, stages: list[Whole], link: LinkSpec, micro_batches: int, spare: int
) -> None:
    blocks = room(work, limits, spare)
    gaps = GapCounts()
    spec = PipelineSpec(tuple(stages[1:]), (1,) * len(stages), 8, link, micro_batches)
    engine = PipelineEngine(limits, blocks, stages[0], spec, gaps=gaps, checked=True)
    course = run(engine, work)
    firsts = {event.key: event.at for event in course.events if isinstance(event, FirstToken)}
    ends = {event.key: event.at for event in course.events if isinstance(event, Finished)}
    assert len(firsts) + len(ends) == sum(not isinstance(event, BlocksReserved) for event in course.events)
    assert set(ends) <= set(firsts)
    assert all(ends[key] >= firsts[key] for key in ends)
    assert {key for key, job in enumerate(work) if job.ended_after is None} <= set(ends)
    check_counts(engine, work, gaps, firsts, ends)
    end = engine.load(1e9)
    assert (end.running, end.waiting, end.blocks_used, end.queued_tokens, end.context_tokens) == (0, 0, 0, 0, 0)
    assert max(load.blocks_used for _, load in course.loads) <= blocks


def check_counts(
    engine: PipelineEngine, work: list[Job], gaps: GapCounts, firsts: dict[int, float], ends: dict[int, float]
) -> None:
    counters = engine.counters
    # Each token but the first of a job has a gap before it.
    assert counters.output_tokens == gaps.counts.total() + len(firsts)
    assert counters.output_tokens >= sum(work[key].output for key in ends)
    assert all(seconds > 0 for seconds in gaps.counts)
    assert max(engine.stage_busy_s, default=0.0) <= counters.busy_s
    if len(ends) == len(work):
        assert counters.output_tokens == sum(job.output for job in work)
        # The gaps of a job add up to what lies between its first token and its last.
        between = sum(ends[key] - firsts[key] for key in ends)
        assert abs(sum(seconds * count for seconds, count in gaps.counts.items()) - between) < 1e-6 * (1 + between)
        if not counters.preemptions:
            # The last token of a prompt, where it is left alone, is computed as a decode is.
            assert 0 <= sum(job.prompt - job.split for job in work) - counters.prompt_tokens <= len(work)


def test_requests_of_a_pool_that_is_always_full_all_end() -> None:
    limits = BatchLimits(block_size=2, max_sequences=9, budget=6)
    work = [Job(3 + key % 7, 4 + key % 5, 0, key % 2, None, 0) for key in range(60)]
    spec = PipelineSpec((Whole(2, 1, 0),), (1, 1), 8, LinkSpec(64.0, 1.0))
    gaps = GapCounts()
    engine = PipelineEngine(limits, 12, Whole(3, 1, 0), spec, gaps=gaps, checked=True)
    course = run(engine, work)
    assert sum(isinstance(event, Finished) for event in course.events) == 60
    assert engine.counters.preemptions > 10
    assert engine.counters.output_tokens == sum(job.output for job in work)
