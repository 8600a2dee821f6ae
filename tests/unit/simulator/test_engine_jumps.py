"""Runs of decode-only steps: how far they go, where commands end them, and what is seen meanwhile."""

import math

import pytest
from engine_case import Driver, decode, end
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.engine.decode_run import DecodeRun
from services.simulator.engine.events import Finished, FirstToken
from services.simulator.engine.records import Batch, StepInProgress

A, B = 1, 2

# A's prompt of 8 tokens takes 1 + 8/4 = 3 s; then it decodes alone, with contexts 8, 9, 10, 11, …: 2, 2.125, 2.25,
# 2.375, … s, so that its tokens come at 3, 5, 7.125, 9.375, 11.75, 14.25, …


def test_decodes_alone_are_one_step_for_the_caller() -> None:
    driver = Driver()
    driver.run((0.0, decode(A, 8, 6)))
    assert driver.ends == [0.0, 3.0, 14.25]
    assert driver.events == [FirstToken(A, 3.0), Finished(A, 14.25)]
    assert driver.gaps.all == [2.0, 2.125, 2.25, 2.375, 2.5]
    assert driver.engine.counters.steps == 6


@pytest.mark.parametrize(
    ("arrival", "boundary"),
    [
        (4.0, 5.0),
        (5.0, 5.0),  # at the end of a step, so it is taken there
        (5.5, 7.125),
        (9.375, 9.375),
        (9.376, 11.75),
        (13.0, 14.25),  # in the last step, which ends with A
    ],
)
def test_an_arrival_ends_the_jump_with_the_step_that_is_running(arrival: float, boundary: float) -> None:
    driver = Driver()
    driver.run((0.0, decode(A, 8, 6)), (arrival, decode(B, 4, 1)))
    assert boundary in driver.ends
    # B's 4 tokens are then computed in one step, with A's next one if it has any to come.
    decodes = 0 if boundary == 14.25 else 1
    assert FirstToken(B, boundary + 1 + (4 + decodes) / 4) in driver.events
    assert driver.engine.counters.output_tokens == 7


def test_an_arrival_at_the_begin_of_a_jump_ends_it_after_its_first_step() -> None:
    driver = Driver()
    decode(A, 8, 6)(driver.engine, 0.0)
    driver.until(3.0)
    driver.engine.advance(3.0)
    assert driver.engine.next_event_at() == 14.25
    decode(B, 4, 1)(driver.engine, 3.0)
    assert driver.engine.next_event_at() == 5.0


def test_a_command_without_effect_changes_no_time() -> None:
    driver = Driver()
    driver.run((0.0, decode(A, 8, 6)), (6.0, end(B)), (8.0, end(B)))
    assert driver.ends == [0.0, 3.0, 7.125, 9.375, 14.25]
    assert driver.events == [FirstToken(A, 3.0), Finished(A, 14.25)]
    assert driver.gaps.all == [2.0, 2.125, 2.25, 2.375, 2.5]


def test_a_job_ended_in_a_jump_is_gone_at_the_boundary() -> None:
    driver = Driver()
    driver.run((0.0, decode(A, 8, 6)), (6.0, end(A)))
    assert driver.ends == [0.0, 3.0, 7.125]
    assert driver.gaps.all == [2.0, 2.125]
    assert driver.engine.load(8.0).blocks_used == 0


def test_a_jump_ends_where_the_blocks_do() -> None:
    # Of 5 blocks A's and B's prompts take one each. Both need another at 4 tokens, for which there is enough, and at 8,
    # for which there is one: there B gives way. Both prompts: 1 + 8/4 = 3 s. Contexts 8, 10, 12, 14: 2 + 2.25 + 2.5 +
    # 2.75 = 9.5 s.
    driver = Driver(num_blocks=5)
    driver.run((0.0, decode(A, 4, 9)), (0.0, decode(B, 4, 9)))
    assert driver.ends[:3] == [0.0, 3.0, 12.5]
    assert driver.engine.counters.preemptions == 1


def test_a_jump_takes_blocks_for_many_rounds() -> None:
    # Of 9 blocks they hold 4 in the first step; the other 5 are enough for two more rounds of 4 steps, and for 3 of the
    # steps after it, in which nobody needs one: 12 steps, with contexts 8, 10, …, 30: 12 + (8 + 30)/2 · 12/8 = 40.5 s.
    driver = Driver(num_blocks=9)
    driver.run((0.0, decode(A, 4, 20)), (0.0, decode(B, 4, 20)))
    assert driver.ends[:3] == [0.0, 3.0, 43.5]
    assert driver.engine.counters.preemptions == 1


def test_the_load_is_seen_in_the_middle_of_a_jump() -> None:
    driver = Driver()
    decode(A, 8, 6)(driver.engine, 0.0)
    driver.until(5.0)
    seen = [driver.engine.load(now) for now in (3.0, 4.9, 5.1, 9.0, 14.25)]
    # Tokens known: 9 after the first, one more with each step; the third block comes with the ninth.
    assert [load.context_tokens for load in seen] == [9, 9, 10, 11, 13]
    assert [load.blocks_used for load in seen] == [3, 3, 3, 3, 4]
    assert [load.steps for load in seen] == [1, 1, 2, 3, 5]


@given(
    first=st.floats(1e-4, 1.0),
    increment=st.one_of(st.just(0.0), st.floats(1e-12, 1e-2)),
    steps=st.integers(1, 5000),
    share=st.floats(0.0, 1.0),
)
def test_the_step_at_an_instant_is_the_one_that_a_count_finds(
    first: float, increment: float, steps: int, share: float
) -> None:
    run = DecodeRun(first, increment, steps)
    elapsed = share * run.seconds(steps)
    found = run.step_at(elapsed)
    assert 1 <= found <= steps
    assert run.seconds(found) >= elapsed
    assert found == 1 or run.seconds(found - 1) < elapsed


@pytest.mark.parametrize("increment", [0.0, 1e-9, 8e-8, 1e-3])
def test_a_boundary_belongs_to_the_step_that_ends_there(increment: float) -> None:
    # The root comes out a rounding above or below the whole number that it should be, for some of these.
    run = DecodeRun(0.0148, increment, 1000)
    for steps in range(1, 1000):
        boundary = run.seconds(steps)
        assert run.step_at(boundary) == steps
        assert run.step_at(math.nextafter(boundary, math.inf)) == steps + 1


def test_a_cut_never_ends_before_the_instant_of_the_command() -> None:
    # The boundary is found by subtracting the begin from the instant and told by adding it again. Each rounds to even:
    # 1 + 3u - u/2 to 1 + 2u, which is where the first step ends, and 1 + 2u + u/2 to 1 + 2u, with u = 2⁻⁵².
    u = 2.0**-52
    began, now, run = u / 2, 1 + 3 * u, DecodeRun(1 + 2 * u, 0.0, 2)
    assert began + run.first < now
    step = StepInProgress(began, began + run.seconds(2), run, Batch([], [], [], []))
    step.cut_at(now)
    assert (step.run.steps, step.ends_at) == (1, now)
