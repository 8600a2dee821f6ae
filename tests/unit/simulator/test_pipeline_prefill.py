"""A prefill instance of several stages: prompts of different micro-batches overlap."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.messages.control import Role
from services.scheduling.continuous import BatchLimits
from services.simulator.engine.events import BlocksReserved, EngineEvent, PrefillAdvanced, PrefillComputed, Refused
from services.simulator.hardware.fitted import FittedTimer
from services.simulator.links import LinkSpec
from services.simulator.pipeline.line import PipelineSpec
from services.simulator.pipeline.pipeline import PipelineEngine

COSTS = InstanceCosts(PrefillCost(1.0, 0.25), MixedStepCost(1.0, 0.25, 0.0, 0.0), DecodeStepCost(1.0, 0.0, 0.0))


def stages(count: int, *, blocks: int = 100, chunk: int | None = None) -> PipelineEngine:
    """Each takes 1 s, and 1/4 s for each token of a prompt."""
    limits = BatchLimits(block_size=4, max_sequences=8, chunk=chunk, prompts_per_step=1)
    timer = FittedTimer(COSTS, Role.PREFILL)
    spec = PipelineSpec((timer,) * (count - 1), (1,) * count, 16, LinkSpec(float("inf"), 0.0), micro_batches=count)
    return PipelineEngine(limits, blocks, timer, spec, checked=True)


def until_idle(engine: PipelineEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while (at := engine.next_event_at()) is not None:
        events += engine.advance(at)
    return events


def computed(events: list[EngineEvent]) -> list[tuple[int, float]]:
    return [(event.key, event.at) for event in events if isinstance(event, PrefillComputed)]


def test_a_prompt_alone_passes_all_stages() -> None:
    engine = stages(2)
    engine.submit_prefill(7, 16, 2.0)
    assert until_idle(engine) == [
        BlocksReserved(7, 2.0),
        PrefillAdvanced(7, 2.0, 12.0, 0, 16),
        PrefillComputed(7, 12.0),
    ]
    assert engine.load(12.0).blocks_used == 4
    engine.end(7, 13.0)
    until_idle(engine)
    assert engine.load(13.0).blocks_used == 0
    assert engine.counters.prompt_tokens == 16


def test_prompts_follow_each_other_by_one_stage() -> None:
    engine = stages(2)
    for key in range(4):
        engine.submit_prefill(key, 16, 0.0)
    # Each takes 5 s in each stage, and two are in the pipeline at once.
    assert computed(until_idle(engine)) == [(0, 10.0), (1, 15.0), (2, 20.0), (3, 25.0)]
    assert engine.stage_busy_s == (20.0, 20.0)


def test_chunks_of_one_prompt_wait_for_each_other() -> None:
    engine = stages(2, chunk=8)
    engine.submit_prefill(0, 16, 0.0)
    # The chunk after 8 tokens is decided when the first one has ended: 3 s in each stage.  What follows a prompt is
    # a step of chunks, which costs the same here.
    assert computed(until_idle(engine)) == [(0, 12.0)]


def test_blocks_go_to_the_next_prompt_when_a_hand_off_ends() -> None:
    engine = stages(2, blocks=6)
    for key in range(2):
        engine.submit_prefill(key, 16, 0.0)
    assert computed(until_idle(engine)) == [(0, 10.0)]
    engine.end(0, 11.0)
    assert computed(until_idle(engine)) == [(1, 21.0)]
    engine.submit_prefill(2, 25, 30.0)
    (refused,) = until_idle(engine)
    assert isinstance(refused, Refused)


@settings(max_examples=60)
@given(
    st.integers(2, 4),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=12),
)
def test_any_order_of_prompts_and_hand_offs_gives_all_back(count: int, jobs: list[tuple[int, int, int]]) -> None:
    engine = stages(count, blocks=12)
    events: list[EngineEvent] = []
    ends: list[tuple[float, int]] = []
    left = sorted((float(at), key, tokens, held) for key, (tokens, at, held) in enumerate(jobs))
    held_for = {key: held for _, key, _, held in left}
    while left or ends or engine.next_event_at() is not None:
        nexts = [at for at in (engine.next_event_at(), left[0][0] if left else None) if at is not None]
        at = min([*nexts, min(ends)[0]] if ends else nexts)
        if engine.next_event_at() == at:
            new = engine.advance(at)
            ends += [(each.at + held_for[each.key], each.key) for each in new if isinstance(each, PrefillComputed)]
            events += new
        elif left and left[0][0] == at:
            _, key, tokens, _ = left.pop(0)
            engine.submit_prefill(key, tokens, at)
        else:
            due = min(ends)
            ends.remove(due)
            engine.end(due[1], at)
    assert sorted(key for key, _ in computed(events)) == list(range(len(jobs)))
    load = engine.load(1e9)
    assert (load.blocks_used, load.waiting, load.running) == (0, 0, 0)


def test_prompts_in_a_row_fill_the_stages() -> None:
    def last(count: int) -> float:
        engine = stages(count)
        for key in range(6):
            engine.submit_prefill(key, 16, 0.0)
        return computed(until_idle(engine))[-1][1]

    # Stages of the same length: the last of six ends after (6 + count - 1) of them.
    assert [last(count) for count in (1, 2, 3)] == [pytest.approx(5.0 * (5 + count)) for count in (1, 2, 3)]
