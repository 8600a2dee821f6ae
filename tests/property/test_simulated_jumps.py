"""The simulated engine with jumps over decode-only steps against the same without: equal events, gaps and loads."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated_case import Gaps, bounds, room

from services.scheduling.continuous import BatchLimits
from services.simulator.engine.engine import SimulatedEngine
from services.simulator.engine.events import BlocksReserved, EngineEvent, SimulatedLoad
from services.simulator.engine.records import EngineCounters
from services.simulator.engine.timing import DecodeLine, StepTimer


class Line(StepTimer):
    """Times linear in everything."""

    def __init__(self, base: float, per_token: float, per_context: float) -> None:
        self.base, self.per_token, self.per_context = base, per_token, per_context

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        tokens = sum(count for count, _ in chunks) + decodes
        return self.base + self.per_token * tokens + self.per_context * decode_context

    def decode_line(self, decodes: int) -> DecodeLine:
        return DecodeLine(self.base + self.per_token * decodes, self.per_context)


EXACT = Line(2**-4, 2**-7, 2**-10)
"""Sums of its times have no rounding: arrivals fall on the very ends of steps, and must be treated alike there."""
ROUNDED = Line(0.0148, 0.0000715, 0.0000008)


@dataclass
class Outcome:
    events: list[EngineEvent]
    gaps: list[float]
    loads: list[SimulatedLoad]
    """At each command, before it."""
    counters: EngineCounters
    calls: int


def served(work: list["TimedJob"], limits: BatchLimits, num_blocks: int, timer: StepTimer, *, jumps: bool) -> Outcome:
    """All jobs, with hand-offs that land and prefill jobs that are ended some time after their blocks are there."""
    gaps = Gaps()
    engine = SimulatedEngine(limits, num_blocks, timer, gaps=gaps, jumps=jumps, checked=True)
    commands = [(job.at, index, "submit", job) for index, job in enumerate(work)]
    commands += [(job.ended_at, index, "end", job) for index, job in enumerate(work) if job.ended_at is not None]
    heapq.heapify(commands)
    out = Outcome([], gaps.all, [], engine.counters, 0)
    while commands or engine.next_event_at() is not None:
        due = engine.next_event_at()
        if commands and (due is None or commands[0][0] <= due):
            now, key, name, job = heapq.heappop(commands)
            out.loads.append(engine.load(now))
            job.command(engine, key, name, now)
            continue
        assert due is not None
        out.calls += 1
        for event in engine.advance(due):
            out.events.append(event)
            if isinstance(event, BlocksReserved):
                job = work[event.key]
                heapq.heappush(commands, (due + job.landing, event.key, "land" if job.output else "end", job))
    return out


@dataclass(order=True)
class TimedJob:
    at: float
    prompt: int
    output: int
    """0: a prefill job."""
    split: int
    landing: float
    ended_at: float | None

    def command(self, engine: SimulatedEngine, key: int, name: str, now: float) -> None:
        if name == "land":
            engine.kv_landed(key, now)
        elif name == "end":
            engine.end(key, now)
        elif self.output:
            engine.submit_decode(key, self.prompt, self.split, self.output, now)
        else:
            engine.submit_prefill(key, self.prompt, now)


@st.composite
def timed_jobs(draw: st.DrawFn) -> list[TimedJob]:
    ticks = st.integers(0, 160).map(lambda tick: tick / 16)
    made = []
    for _ in range(draw(st.integers(1, 8))):
        prompt = draw(st.integers(1, 30))
        at = draw(ticks)
        ended_at = at + draw(ticks) if draw(st.integers(0, 7)) == 0 else None
        split = draw(st.sampled_from([0, 0, prompt - 1, prompt // 2]))
        output = 0 if draw(st.integers(0, 9)) == 0 else draw(st.integers(1, 60))
        made.append(TimedJob(at, prompt, output, split, draw(ticks), ended_at))
    return made


@pytest.mark.parametrize("timer", [EXACT, ROUNDED], ids=["exact", "rounded"])
@settings(max_examples=300)
# Whoever was not asked for admission in a step that preempted may be admitted in the next one.
@example(
    work=[
        TimedJob(0.0, 1, 10, 0, 0.0, None),
        TimedJob(0.0, 1, 3, 0, 0.0, None),
        TimedJob(0.0, 6, 1, 5, 0.25, None),
        TimedJob(0.0, 1, 0, 0, 0.0, 0.0),
    ],
    limits=BatchLimits(block_size=1, max_sequences=3),
    spare=0,
)
# One admitted for KV to come counts as running in the step that admits it, and no more in the next.
@example(
    work=[
        TimedJob(0.0, 16, 1, 15, 0.1875, None),
        TimedJob(0.0, 1, 0, 0, 0.125, None),
        TimedJob(0.0625, 1, 0, 0, 0.125, 0.0625),
        TimedJob(0.0625, 2, 7, 0, 0.0, None),
        TimedJob(0.0625, 1, 0, 0, 0.0625, 0.0625),
        TimedJob(0.0625, 2, 33, 1, 0.0625, None),
        TimedJob(0.0625, 1, 0, 0, 0.0, None),
        TimedJob(0.0, 1, 0, 0, 0.0, 0.0),
    ],
    limits=BatchLimits(block_size=3, max_sequences=5),
    spare=1,
)
@given(work=timed_jobs(), limits=bounds(), spare=st.integers(0, 30))
def test_jumps_change_neither_events_nor_gaps_nor_loads(
    timer: Line, work: list[TimedJob], limits: BatchLimits, spare: int
) -> None:
    num_blocks = room(work, limits, spare)
    stepped = served(work, limits, num_blocks, timer, jumps=False)
    jumped = served(work, limits, num_blocks, timer, jumps=True)
    assert [(type(event), event.key) for event in jumped.events] == [(type(e), e.key) for e in stepped.events]
    assert [event.at for event in jumped.events] == pytest.approx([e.at for e in stepped.events], abs=1e-9)
    assert sorted(jumped.gaps) == pytest.approx(sorted(stepped.gaps), abs=1e-9)
    assert jumped.loads == stepped.loads
    assert jumped.counters.busy_s == pytest.approx(stepped.counters.busy_s, abs=1e-9)
    stepped.counters.busy_s = jumped.counters.busy_s
    assert jumped.counters == stepped.counters
    assert jumped.calls <= stepped.calls
