"""Schedules of a pipeline worked out by hand, with exact times."""

import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.messages.control import Role
from services.scheduling.continuous import BatchLimits
from services.simulator.engine.events import (
    BlocksReserved,
    EngineEvent,
    Finished,
    FirstToken,
    Refused,
    SimulationError,
)
from services.simulator.engine.records import EngineCounters
from services.simulator.hardware.fitted import FittedTimer
from services.simulator.links import LinkSpec
from services.simulator.pipeline.line import PipelineSpec
from services.simulator.pipeline.pipeline import PipelineEngine

INSTANT = LinkSpec(float("inf"), 0.0)
LIMITS = BatchLimits(block_size=4, max_sequences=8, budget=8)


def stage(base: float, per_token: float = 0.0) -> FittedTimer:
    """`base` seconds a step and `per_token` for each of its tokens."""
    costs = InstanceCosts(
        PrefillCost(base, per_token), MixedStepCost(base, per_token, 0.0, 0.0), DecodeStepCost(base, per_token, 0.0)
    )
    return FittedTimer(costs, Role.DECODE)


class Gaps:
    """Every gap, in order."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def record_gap(self, seconds: float, count: int) -> None:
        self.seconds += [seconds] * count

    def record_run(self, first: float, increment: float, steps: int, count: int) -> None:
        raise AssertionError("a pipeline makes every step by itself")


def pipeline(
    *seconds: float, link: LinkSpec = INSTANT, limits: BatchLimits = LIMITS, blocks: int = 100, micro_batches: int = 2
) -> tuple[PipelineEngine, Gaps]:
    first, *later = (stage(each) for each in seconds)
    layers = (1,) * len(seconds)
    spec = PipelineSpec(tuple(later), layers, bytes_per_token=16, link=link, micro_batches=micro_batches)
    gaps = Gaps()
    return PipelineEngine(limits, blocks, first, spec, gaps=gaps, checked=True), gaps


def until_idle(engine: PipelineEngine, limit: float = 1e6) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while (at := engine.next_event_at()) is not None:
        assert at <= limit
        events += engine.advance(at)
    assert engine.load(limit).blocks_used == 0
    return events


def test_a_token_of_a_request_alone_takes_both_stages_and_both_links() -> None:
    # 64 bytes/s: a token's activations take 0.25 s, a sampled token 0.125 s; each 0.5 s more on the way.
    engine, gaps = pipeline(3.0, 2.0, link=LinkSpec(64.0, 0.5))
    engine.submit_decode(7, 8, 0, 4, 10.0)
    prompt = 3.0 + (8 * 0.25 + 0.5) + 2.0 + (0.125 + 0.5)
    token = 3.0 + (0.25 + 0.5) + 2.0 + (0.125 + 0.5)
    assert until_idle(engine) == [FirstToken(7, 10.0 + prompt), Finished(7, 10.0 + prompt + 3 * token)]
    assert gaps.seconds == [token] * 3
    assert engine.stage_busy_s == (4 * 3.0, 4 * 2.0)
    busy = prompt + 3 * token
    assert engine.counters == EngineCounters(steps=4, mixed_steps=1, busy_s=busy, prompt_tokens=8, output_tokens=4)


def test_chunks_of_a_prompt_follow_one_another_through_all_stages() -> None:
    engine, _ = pipeline(3.0, 2.0)
    engine.submit_decode(1, 20, 0, 1, 0.0)
    # 8 + 8 + 4 tokens: the next chunk begins when the last stage is done with the one before.
    assert until_idle(engine) == [FirstToken(1, 15.0), Finished(1, 15.0)]


@pytest.mark.parametrize(
    ("stages", "ends"),
    [
        # The first stage never rests: steps end every 3 s, of either micro-batch every 6 s.
        ((3.0, 2.0), ([5.0, 11.0, 17.0], [8.0, 14.0, 20.0])),
        # The second one never rests once it is reached.
        ((1.0, 3.0), ([4.0, 10.0, 16.0], [7.0, 13.0, 19.0])),
        # Neither rests.
        ((2.0, 2.0), ([4.0, 8.0, 12.0], [6.0, 10.0, 14.0])),
    ],
)
def test_two_micro_batches_alternate(stages: tuple[float, float], ends: tuple[list[float], list[float]]) -> None:
    engine, gaps = pipeline(*stages)
    engine.submit_decode(1, 8, 0, 3, 0.0)
    engine.submit_decode(2, 8, 0, 3, 0.0)
    one, two = ends
    assert sorted(until_idle(engine), key=lambda event: (event.key, event.at)) == [
        FirstToken(1, one[0]),
        Finished(1, one[2]),
        FirstToken(2, two[0]),
        Finished(2, two[2]),
    ]
    # The gap is between the ends of a micro-batch's steps: its wait for the first stage is part of it.
    assert sorted(gaps.seconds) == sorted([one[1] - one[0], one[2] - one[1], two[1] - two[0], two[2] - two[1]])


def test_a_long_way_back_leaves_the_stages_idle() -> None:
    # A round is 2 + 4 + 2 + 4 = 12 s, and two steps in it are 4 s of work for each stage.
    engine, _ = pipeline(2.0, 2.0, link=LinkSpec(float("inf"), 4.0))
    for key in (1, 2):
        engine.submit_decode(key, 8, 0, 10, 0.0)
    events = until_idle(engine)
    assert Finished(1, 120.0) in events
    assert Finished(2, 122.0) in events
    assert engine.stage_busy_s == (40.0, 40.0)


@pytest.mark.parametrize(("stages", "micro_batches"), [((3.0, 2.0), 2), ((2.0, 3.0), 2), ((1.0, 3.0, 2.0), 3)])
def test_a_filled_pipeline_makes_a_step_per_slower_stage(stages: tuple[float, ...], micro_batches: int) -> None:
    engine, _ = pipeline(*stages, micro_batches=micro_batches, blocks=6 * 26)
    for key in range(6):
        engine.submit_decode(key, 4, 0, 101, 0.0)
    until_idle(engine)
    counters = engine.counters
    assert counters.output_tokens == 6 * 101
    # But for the way of the first step to the slower stage, and that of the last one from it.
    beside = sum(stages) - max(stages)
    assert counters.busy_s == pytest.approx(counters.steps * max(stages) + beside, abs=2 * max(stages))
    assert max(engine.stage_busy_s) == counters.steps * max(stages)


def test_requests_go_where_fewest_tokens_wait() -> None:
    engine, _ = pipeline(1.0, 1.0)
    engine.submit_decode(0, 32, 0, 1, 0.0)
    for key in (1, 2, 3, 4):
        engine.submit_decode(key, 8, 0, 1, 0.0)
    # The first micro-batch has 32 tokens from 0 s on, with a step every 2 s: 8 tokens each, at 2, 4, 6, 8 s.  The four
    # short ones are dealt to the second, whose steps end at 3, 5, 7, 9 s; the older half of what they share is 4 tokens
    # and more: 0 is done first.
    events = until_idle(engine)
    first_at = {event.key: event.at for event in events if isinstance(event, FirstToken)}
    assert first_at[0] == 8.0
    assert all(first_at[key] % 2 == 1.0 for key in (1, 2, 3, 4))
    assert max(first_at.values()) == 9.0


def test_a_request_that_comes_late_takes_the_first_stage_when_it_is_free() -> None:
    engine, _ = pipeline(3.0, 2.0)
    engine.submit_decode(1, 8, 0, 1, 0.0)
    assert engine.advance(0.0) == []
    engine.submit_decode(2, 8, 0, 1, 1.0)
    assert engine.next_event_at() == 3.0
    assert engine.advance(3.0) == []
    assert until_idle(engine) == [FirstToken(1, 5.0), Finished(1, 5.0), FirstToken(2, 8.0), Finished(2, 8.0)]


def test_a_request_that_comes_to_a_free_first_stage_begins_at_once() -> None:
    engine, _ = pipeline(3.0, 2.0)
    engine.submit_decode(1, 8, 0, 1, 0.0)
    engine.advance(0.0)
    engine.submit_decode(2, 8, 0, 1, 4.0)
    assert until_idle(engine) == [FirstToken(1, 5.0), Finished(1, 5.0), FirstToken(2, 9.0), Finished(2, 9.0)]


def test_among_equals_the_one_whose_step_is_next_gets_the_request() -> None:
    engine, _ = pipeline(3.0, 2.0)
    for key in (1, 2):
        engine.submit_decode(key, 8, 0, 9, 0.0)
    while engine.next_event_at() != 9.0:
        engine.advance(engine.next_event_at() or 0.0)
    # Both decode one sequence; the first one is on its way from 6 s, the second waits for the first stage until 9 s.
    engine.submit_decode(3, 4, 0, 1, 8.5)
    assert FirstToken(3, 14.0) in engine.advance(14.0)


def test_three_micro_batches_take_turns_in_the_order_in_which_they_are_ready() -> None:
    engine, _ = pipeline(3.0, 1.0, micro_batches=3)
    for key in (1, 2, 3):
        engine.submit_decode(key, 8, 0, 4, 0.0)
    # A step every 3 s and three in turn: all that ends does so 9 s after the step before.
    ends = [event for event in until_idle(engine) if isinstance(event, Finished)]
    assert ends == [Finished(1, 4.0 + 27.0), Finished(2, 7.0 + 27.0), Finished(3, 10.0 + 27.0)]


def test_who_decodes_comes_before_who_has_waited_for_work() -> None:
    engine, _ = pipeline(3.0, 2.0)
    engine.submit_decode(1, 8, 0, 2, 0.0)
    engine.advance(0.0)
    engine.submit_decode(2, 8, 0, 1, 5.0)
    assert until_idle(engine) == [FirstToken(1, 5.0), Finished(1, 10.0), FirstToken(2, 13.0), Finished(2, 13.0)]


def test_slots_are_shared_evenly() -> None:
    limits = BatchLimits(block_size=4, max_sequences=3, budget=2)
    engine, _ = pipeline(1.0, 1.0, limits=limits)
    for key in range(5):
        engine.submit_decode(key, 2, 0, 2, 0.0)
    engine.advance(0.0)
    load = engine.load(0.0)
    assert (load.running, load.waiting) == (3, 2)
    assert len([event for event in until_idle(engine) if isinstance(event, Finished)]) == 5


def test_a_preempted_request_waits_for_the_other_micro_batch() -> None:
    # 5 blocks of 4.  Each prompt of 8 takes 2, and its first token a third: that of 1 takes the last one, and 2, alone
    # in its micro-batch, gives its own two back.
    engine, gaps = pipeline(1.0, 1.0, blocks=5)
    engine.submit_decode(1, 8, 0, 5, 0.0)
    engine.submit_decode(2, 8, 0, 5, 0.0)
    events = until_idle(engine)
    assert engine.counters.preemptions == 1
    # 1: a token at 2, 4, …, 10 s.  2: its first token at 3 s; at 10 s there is room for its 9 tokens, of which 8 are in
    # one step (12 s) and the ninth in the next: the second token at 14 s, 11 s after the first.
    assert events == [FirstToken(1, 2.0), FirstToken(2, 3.0), Finished(1, 10.0), Finished(2, 20.0)]
    assert sorted(gaps.seconds) == [2.0] * 7 + [11.0]


def test_a_preempted_token_is_as_old_as_the_end_of_its_step() -> None:
    # As above; now the second micro-batch, done at 7 s, waits for the first stage until 9 s and is preempted there.
    engine, gaps = pipeline(3.0, 1.0, blocks=5)
    engine.submit_decode(1, 8, 0, 5, 0.0)
    engine.submit_decode(2, 8, 0, 5, 0.0)
    # 1: at 4, 10 (from 6), 14, 18, 22 s.  2: at 7 s, then its 9 tokens in two steps: at 30, 34, 38, 42 s.
    assert until_idle(engine) == [FirstToken(1, 4.0), FirstToken(2, 7.0), Finished(1, 22.0), Finished(2, 42.0)]
    assert gaps.seconds == [6.0, 4.0, 4.0, 4.0, 23.0, 4.0, 4.0, 4.0]


def test_room_is_kept_for_the_next_tokens_of_all_micro_batches() -> None:
    # 1 has 2 of 5 blocks and will want a third; 2 would take the other three.
    engine, _ = pipeline(3.0, 2.0, blocks=5)
    engine.submit_decode(1, 8, 0, 3, 0.0)
    engine.advance(0.0)
    engine.submit_decode(2, 12, 0, 1, 1.0)
    assert until_idle(engine) == [FirstToken(1, 5.0), Finished(1, 15.0), FirstToken(2, 25.0), Finished(2, 25.0)]
    assert engine.counters.preemptions == 0


def test_what_can_never_fit_is_refused() -> None:
    engine, _ = pipeline(1.0, 1.0, blocks=3)
    engine.submit_decode(1, 10, 0, 4, 0.0)
    engine.submit_decode(2, 9, 0, 4, 0.0)
    refused, *rest = until_idle(engine)
    assert isinstance(refused, Refused)
    assert "14 tokens" in refused.reason
    assert [event.key for event in rest] == [2, 2]


def test_an_ended_job_leaves_when_its_step_has_ended() -> None:
    engine, _ = pipeline(3.0, 2.0, limits=BatchLimits(block_size=4, max_sequences=8, budget=16))
    for key in (1, 2, 3):
        engine.submit_decode(key, 8, 0, 3, 0.0)
    engine.advance(0.0)
    engine.advance(3.0)
    assert engine.load(4.0).blocks_used == 6
    engine.end(1, 4.0)
    engine.end(2, 4.0)
    engine.end(9, 4.0)
    # Its first token is on its way when it is ended; its micro-batch's next step, of 3 alone, is not.
    events = until_idle(engine)
    assert [event for event in events if event.key < 3] == [FirstToken(1, 5.0), FirstToken(2, 8.0)]
    assert [type(event) for event in events if event.key == 3] == [FirstToken, Finished]


def test_a_part_that_comes_from_elsewhere_is_waited_for() -> None:
    engine, _ = pipeline(3.0, 2.0)
    engine.submit_decode(1, 8, 6, 1, 0.0)
    assert engine.advance(0.0) == [BlocksReserved(1, 0.0)]
    assert engine.next_event_at() is None
    engine.kv_landed(1, 2.0)
    assert until_idle(engine) == [FirstToken(1, 7.0), Finished(1, 7.0)]


def test_requests_that_wait_for_their_kv_are_dealt_too() -> None:
    engine, _ = pipeline(3.0, 2.0)
    for key in (1, 2):
        engine.submit_decode(key, 8, 6, 1, 0.0)
    engine.advance(0.0)
    for key in (1, 2):
        engine.kv_landed(key, 0.0)
    assert until_idle(engine) == [FirstToken(1, 5.0), Finished(1, 5.0), FirstToken(2, 8.0), Finished(2, 8.0)]


def test_who_waits_for_kv_holds_no_room_back() -> None:
    # Two blocks: the first decision keeps one for 1, of which the next one knows that it does not run.
    engine, _ = pipeline(3.0, 2.0, blocks=2, micro_batches=1)
    engine.submit_decode(1, 4, 2, 1, 0.0)
    engine.submit_decode(2, 4, 0, 1, 0.0)
    assert engine.advance(0.0) == [BlocksReserved(1, 0.0)]
    assert engine.advance(5.0) == [FirstToken(2, 5.0), Finished(2, 5.0)]


def test_the_load_is_what_is_held() -> None:
    limits = BatchLimits(block_size=4, max_sequences=8, budget=16)
    engine, _ = pipeline(3.0, 2.0, limits=limits, blocks=11)
    for key, prompt in enumerate((8, 8, 20, 5)):
        engine.submit_decode(key, prompt, 0, 3, 0.0)
    engine.advance(0.0)
    load = engine.load(1.0)
    # 2 + 2 + 5 blocks; the fourth needs two, and those that run keep three free.
    assert (load.running, load.waiting, load.blocks_used, load.blocks_total) == (3, 1, 9, 11)
    assert load.queued_tokens == 8 + 8 + 20 + 5
    assert (load.decodes, load.context_tokens, load.steps) == (0, 0, 0)
    engine.advance(3.0)
    engine.advance(5.0)
    # Key 0 has its first token: 9 known, and decodes.
    assert (engine.load(5.0).decodes, engine.load(5.0).context_tokens) == (1, 9)


def test_misuse_says_what_to_do() -> None:
    engine, _ = pipeline(3.0, 2.0)
    with pytest.raises(SimulationError, match="a prefill of 0 tokens; give at least 1"):
        engine.submit_prefill(1, 0, 0.0)
    with pytest.raises(SimulationError, match=r"split in \[0, prompt tokens - 1\]"):
        engine.submit_decode(1, 8, 8, 1, 0.0)
    engine.submit_decode(1, 8, 0, 1, 1.0)
    with pytest.raises(SimulationError, match="advance it to that first"):
        engine.submit_decode(2, 8, 0, 1, 2.0)
    with pytest.raises(SimulationError, match="raise budget or lower max_sequences"):
        pipeline(1.0, 1.0, limits=BatchLimits(block_size=4, max_sequences=8, budget=3))
    with pytest.raises(SimulationError, match="0 micro-batches"):
        pipeline(1.0, 1.0, micro_batches=0)
    pipeline(1.0, 1.0, limits=BatchLimits(block_size=4, max_sequences=8, budget=4))
