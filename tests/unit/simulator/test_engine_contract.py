"""What a simulated engine refuses, ignores and checks; its load; the queue of those that wait."""

import pytest
from engine_case import Driver, HandTimer, decode, end, landed, prefill

from services.scheduling.continuous import BatchLimits, StepPlan, Work
from services.simulator.engine.checks import check_begin, check_end, check_seconds
from services.simulator.engine.core import SimulatedCore
from services.simulator.engine.decode_run import DecodeRun
from services.simulator.engine.engine import SimulatedEngine
from services.simulator.engine.events import BlocksReserved, EngineEvent, Finished, FirstToken, IgnoredGaps, Refused
from services.simulator.engine.events import SimulationError as Fault
from services.simulator.engine.records import Batch, SimulatedSequence
from services.simulator.engine.waiting_queue import WaitingQueue

A, B, C = 1, 2, 3
LIMITS = BatchLimits(block_size=4, max_sequences=4, budget=8)


def test_an_idle_engine_has_nothing_to_do_and_wakes_at_the_first_command() -> None:
    driver = Driver()
    assert driver.engine.next_event_at() is None
    assert driver.engine.advance(5.0) == []
    decode(A, 4, 1)(driver.engine, 7.0)
    decode(B, 4, 1)(driver.engine, 7.0)
    assert driver.engine.next_event_at() == 7.0
    # Commands of one instant are taken together: 1 + 8/4 s.
    assert driver.run() == [FirstToken(A, 10.0), Finished(A, 10.0), FirstToken(B, 10.0), Finished(B, 10.0)]


def test_one_late_call_completes_all_that_ended_meanwhile() -> None:
    driver = Driver()
    decode(A, 4, 3)(driver.engine, 0.0)
    assert driver.engine.advance(100.0) == [FirstToken(A, 2.0), Finished(A, 5.125)]


def test_a_job_that_can_never_fit_is_refused_and_the_others_are_served() -> None:
    # 3 blocks hold 12 tokens: 9 of prompt and the first 3 of 4 emitted ones.
    driver = Driver(num_blocks=3)
    driver.run((0.0, decode(A, 9, 5)), (0.0, prefill(B, 13)), (0.0, decode(C, 9, 4)))
    refused = [event for event in driver.events if isinstance(event, Refused)]
    assert [(event.key, event.at) for event in refused] == [(A, 0.0), (B, 0.0)]
    assert refused[0].reason == "14 tokens (prompt and output); the KV memory of this instance holds 12"
    assert isinstance(driver.events[-1], Finished)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (decode(A, 0, 1), "0 prompt"),
        (decode(A, 1, 0), "0 output"),
        (decode(A, 5, 1, split=5), "split 5"),
        (decode(A, 5, 1, split=-1), "split -1"),
        (prefill(A, 0), "0 tokens"),
    ],
)
def test_a_job_that_makes_no_sense_is_the_callers_fault(command: object, words: str) -> None:
    with pytest.raises(Fault, match=words):
        command(Driver().engine, 0.0)  # type: ignore[operator]


def test_a_key_is_free_again_when_its_job_has_ended() -> None:
    driver = Driver()
    driver.run((0.0, decode(A, 4, 1)), (10.0, decode(A, 4, 1)))
    assert len(driver.events) == 4
    decode(A, 4, 1)(driver.engine, 20.0)
    decode(A, 4, 1)(driver.engine, 20.0)
    with pytest.raises(Fault, match="job 1 was submitted again"):
        driver.run()


def test_commands_come_in_the_order_of_time() -> None:
    driver = Driver()
    driver.run((5.0, decode(A, 4, 1)))
    with pytest.raises(Fault, match="never go back"):
        decode(B, 4, 1)(driver.engine, 6.0)
    decode(B, 4, 1)(driver.engine, 7.0)
    with pytest.raises(Fault, match=r"due at 7\.0 s: advance"):
        decode(C, 4, 1)(driver.engine, 8.0)


def test_unknown_keys_have_no_effect() -> None:
    driver = Driver()
    driver.run((0.0, end(A)), (1.0, landed(A)), (2.0, decode(A, 4, 1)), (2.5, landed(A)))
    assert driver.events == [FirstToken(A, 4.0), Finished(A, 4.0)]


def test_a_job_is_ended_wherever_it_stands() -> None:
    # A decodes, B's KV is on its way, C waits for a slot.
    driver = Driver(num_blocks=8, max_sequences=2)
    driver.run(
        (0.0, decode(A, 8, 20)),
        (0.0, decode(B, 8, 2, split=4)),
        (0.0, decode(C, 8, 2)),
        (20.0, end(C)),
        (21.0, end(B)),
        (22.0, end(A)),
    )
    assert driver.events == [BlocksReserved(B, 0.0), FirstToken(A, 3.0)]
    assert driver.engine.load(100.0).blocks_used == driver.engine.load(100.0).running == 0


def test_the_load_says_who_waits_runs_and_decodes() -> None:
    driver = Driver(num_blocks=8, max_sequences=2)
    for command in (decode(A, 8, 20), decode(B, 9, 2, split=4), decode(C, 7, 2)):
        command(driver.engine, 0.0)
    driver.engine.advance(0.0)
    # A's prompt is being computed; B holds three blocks for KV that comes; C has no slot.
    load = driver.engine.load(1.0)
    assert (load.waiting, load.running, load.decodes) == (1, 2, 0)
    assert (load.queued_tokens, load.context_tokens) == (7 + 8, 0)
    assert (load.blocks_used, load.blocks_total, load.steps) == (5, 8, 0)
    driver.engine.advance(3.0)
    # A has emitted one token and taken a block for it.
    load = driver.engine.load(3.5)
    assert (load.queued_tokens, load.context_tokens, load.decodes) == (7, 9, 1)
    assert (load.blocks_used, load.steps) == (6, 1)


@pytest.mark.parametrize(
    ("limits", "num_blocks", "words"),
    [
        (BatchLimits(4, 9, 8), 10, "budget of 8 tokens per step with max_sequences 9"),
        (BatchLimits(0, 4, 8), 10, "at least 1"),
        (BatchLimits(4, 4, 8), 0, "0 blocks"),
    ],
)
def test_bounds_that_no_instance_may_have_are_refused(limits: BatchLimits, num_blocks: int, words: str) -> None:
    with pytest.raises(Fault, match=words):
        SimulatedEngine(limits, num_blocks, HandTimer())


def test_plans_are_told_step_by_step_only() -> None:
    plans: list[StepPlan] = []
    with pytest.raises(Fault, match="jumps=False"):
        SimulatedEngine(LIMITS, 10, HandTimer(), on_plan=plans.append)
    engine = SimulatedEngine(LIMITS, 10, HandTimer(), jumps=False, on_plan=plans.append)
    engine.submit_decode(A, 8, 0, 2, 0.0)
    engine.advance(100.0)
    # The plan counts jobs from 0. The second token takes a third block.
    assert plans == [StepPlan(admit=(0,), work=(Work(0, 8),)), StepPlan(grow=(0,), work=(Work(0, 1),))]


@pytest.mark.parametrize(("first", "increment"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, -0.1)])
def test_a_time_model_must_give_every_step_some_time(first: float, increment: float) -> None:
    with pytest.raises(Fault, match="correct the coefficients"):
        check_seconds(DecodeRun(first, increment, 3))


def core() -> SimulatedCore:
    events: list[EngineEvent] = []
    return SimulatedCore(LIMITS, 10, IgnoredGaps(), events)


def waiting(order: int, known: int = 4) -> SimulatedSequence:
    return SimulatedSequence(order + 100, order, known, 5, external=0, known=known)


def test_the_checks_see_what_must_not_be() -> None:
    broken = core()
    with pytest.raises(Fault, match="9 tokens; the budget is 8"):
        check_begin(broken, Batch([], [], [waiting(0)], [(waiting(1), 8)]))
    broken.used = 11
    with pytest.raises(Fault, match="11 blocks are held; there are 10"):
        check_begin(broken, Batch([], [], [], []))
    broken.used = 1
    with pytest.raises(Fault, match="no job is left, but 1 blocks"):
        check_end(broken)
    broken.used = 0
    broken.crowd.add(waiting(0))
    with pytest.raises(Fault, match="1 decodes"):
        check_end(broken)
    broken.by_key = {order: waiting(order) for order in range(5)}
    with pytest.raises(Fault, match="5 sequences hold blocks"):
        check_begin(broken, Batch([], [], [], []))


def test_those_preempted_wait_before_those_that_came_later() -> None:
    queue = WaitingQueue()
    newcomers = [waiting(order, known=order) for order in (7, 8, 9)]
    for sequence in newcomers:
        queue.push(sequence)
    returned = [waiting(order, known=order) for order in (5, 2, 3)]
    for sequence in returned:
        queue.put_back(sequence)
    assert list(queue.known()) == [2, 3, 5, 7, 8, 9]
    assert (len(queue), queue.tokens) == (6, 34)
    queue.discard(newcomers[1])
    queue.discard(returned[2])
    assert [sequence.order for sequence in queue.take(3)] == [2, 5, 7]
    assert (len(queue), queue.tokens) == (1, 9)
    assert [sequence.order for sequence in queue.take(5)] == [9]
    assert not queue
    assert queue.tokens == 0
