"""The times of the stages: Cronus' Eq. 2 and Eq. 3, summed over the steps they stand for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.costs.models import PrefillCost
from common.costs.shape import StepShape
from services.scheduling.profiles.stage_times import (
    BusyDecode,
    BusyPrefill,
    DecodeLoad,
    DecodeStage,
    PrefillLoad,
    PrefillStage,
    TransferStage,
)
from tests.unit.scheduling.costs_case import BUDGET, COSTS, SLOTS

P = PrefillStage(PrefillCost(base=0.5, per_token=0.01))
D = DecodeStage(COSTS.mixed, COSTS.decode, BUDGET, SLOTS)
LOADS = st.builds(DecodeLoad, st.integers(0, 300), st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 200))


def busy(decodes: int = 0, context: int = 0, prefill_tokens: int = 0, prompts: int = 0) -> BusyDecode:
    return D.under(DecodeLoad(decodes, context, prefill_tokens, prompts))


# ---------------------------------------------------------------- P


def test_a_prompt_at_p_is_one_step() -> None:
    assert P.seconds(1000) == 0.5 + 0.01 * 1000


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (201, 3)])
def test_in_chunks_each_is_a_step(tokens: int, steps: int) -> None:
    assert PrefillStage(P.cost, chunk=100).seconds(tokens) == pytest.approx(steps * 0.5 + 0.01 * tokens)


@pytest.mark.parametrize(("tokens", "seconds"), [(1, 0.9), (40, 0.9), (41, 0.91), (100, 1.5)])
def test_no_step_of_p_takes_less_than_the_least(tokens: int, seconds: float) -> None:
    assert PrefillStage(P.cost, least_s=0.9).seconds(tokens) == pytest.approx(seconds)


@pytest.mark.parametrize(("tokens", "seconds"), [(100, 1.5), (101, 2.4), (140, 2.4), (141, 2.41), (201, 3.9)])
def test_the_least_is_of_each_chunk(tokens: int, seconds: float) -> None:
    """Also of the last, whatever the full ones before it take."""
    assert PrefillStage(P.cost, chunk=100, least_s=0.9).seconds(tokens) == pytest.approx(seconds)


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("tokens", [0, -1, -40])
def test_p_needs_no_time_for_nothing(chunk: int | None, tokens: int) -> None:
    assert PrefillStage(P.cost, chunk, least_s=0.9).seconds(tokens) == 0.0


def test_the_backlog_of_p_has_a_base_for_every_prompt() -> None:
    backlog = P.under(PrefillLoad((10, 0, 30)))
    assert (backlog.backlog_s, backlog.backlog_tokens) == (pytest.approx(2 * 0.5 + 0.01 * 40), 40)
    assert P.under(PrefillLoad()) == BusyPrefill(P, 0.0, 0)


def test_the_backlog_of_p_has_the_least_for_every_prompt() -> None:
    stage = PrefillStage(P.cost, least_s=0.9)
    assert stage.under(PrefillLoad((10, 0, 30, 100))).backlog_s == pytest.approx(2 * 0.9 + 1.5)


@st.composite
def prefill_stages(draw: st.DrawFn) -> PrefillStage:
    cost = PrefillCost(draw(st.floats(0.0, 1.0)), draw(st.floats(1e-4, 0.1)))
    chunk = draw(st.one_of(st.none(), st.integers(1, 50)))
    return PrefillStage(cost, chunk, draw(st.one_of(st.just(0.0), st.floats(0.0, 2.0))))


@given(prefill_stages(), st.integers(0, 300))
def test_more_tokens_never_take_p_less(stage: PrefillStage, tokens: int) -> None:
    assert stage.seconds(tokens) <= stage.seconds(tokens + 1) * (1 + 1e-12)


@given(prefill_stages(), st.floats(-1.0, 30.0))
def test_the_tokens_within_a_time_are_the_most(stage: PrefillStage, seconds: float) -> None:
    tokens = stage.tokens_within(seconds)
    assert stage.seconds(tokens) <= max(0.0, seconds) * (1 + 1e-9)
    # One more may come just as the time is over.
    assert stage.seconds(tokens + 1) > seconds * (1 - 1e-9)


def test_tokens_that_cost_nothing_are_not_counted() -> None:
    assert PrefillStage(PrefillCost(base=0.5, per_token=0.0)).tokens_within(10.0) == 0


# ---------------------------------------------------------------- the hand-off


def test_a_hand_off_is_latency_and_bytes() -> None:
    assert TransferStage(100, 1e6, 0.002).seconds(50) == pytest.approx(0.002 + 0.005)


def test_an_unmeasured_link_is_its_latency_alone() -> None:
    assert TransferStage(100, None, 0.002).seconds(50) == 0.002


@pytest.mark.parametrize("tokens", [0, -1])
def test_nothing_is_handed_over_in_no_time(tokens: int) -> None:
    assert TransferStage(100, 1e6, 0.002).seconds(tokens) == 0.0


# ---------------------------------------------------------------- D


@given(steps=st.integers(1, 20), start=st.integers(0, 4000), decodes=st.integers(0, 200), context=st.integers(0, 10**5))
def test_the_rest_is_the_sum_of_eq_3_over_filled_steps(steps: int, start: int, decodes: int, context: int) -> None:
    room = BUDGET - decodes
    shapes = [StepShape(room, start + step * room, decodes, context) for step in range(steps)]
    summed = math.fsum(map(COSTS.mixed.seconds, shapes))
    assert busy(decodes, context).rest_seconds(start, start + steps * room) == pytest.approx(summed)


@given(tokens=st.integers(1, BUDGET), start=st.integers(0, 4000), decodes=st.integers(0, 200))
def test_a_rest_that_fits_in_one_step_is_that_step(tokens: int, start: int, decodes: int) -> None:
    tokens = min(tokens, BUDGET - decodes)
    step = COSTS.mixed.seconds(StepShape(tokens, start, decodes, 7 * decodes))
    assert busy(decodes, 7 * decodes).rest_seconds(start, start + tokens) == pytest.approx(step)


def test_between_whole_steps_the_rest_is_in_proportion() -> None:
    whole = [busy().rest_seconds(0, steps * BUDGET) for steps in (1, 2)]
    assert whole[0] < busy().rest_seconds(0, BUDGET * 3 // 2) < whole[1]


def test_more_decodes_than_the_budget_leave_room_for_one_token() -> None:
    decodes = BUDGET + 5
    per_step = COSTS.mixed.seconds(StepShape(1, 0, decodes, 0))
    assert busy(decodes).rest_seconds(0, 3) == pytest.approx(3 * per_step + COSTS.mixed.per_chunk_context * (0 + 1 + 2))


@given(load=LOADS, start=st.integers(0, 2000), tokens=st.integers(1, 2000))
def test_more_decode_load_never_makes_the_rest_quicker(load: DecodeLoad, start: int, tokens: int) -> None:
    rest = D.under(load).rest_seconds(start, start + tokens)
    for more in (
        DecodeLoad(load.decodes + 1, load.decode_context, load.prefill_tokens, load.prompts),
        DecodeLoad(load.decodes, load.decode_context + 1, load.prefill_tokens, load.prompts),
    ):
        assert D.under(more).rest_seconds(start, start + tokens) >= rest * (1 - 1e-12)


def test_the_prompts_before_are_computed_as_rests_are() -> None:
    """One prompt whose context is half of it in the mean."""
    expected = 4 * COSTS.mixed.base + COSTS.mixed.per_token * 4 * BUDGET
    expected += 4 * COSTS.mixed.per_chunk_context * 4 * BUDGET / 2
    assert busy(prefill_tokens=4 * BUDGET, prompts=1).backlog_s == pytest.approx(expected)


def test_the_same_tokens_in_more_prompts_have_less_context() -> None:
    one, four = (busy(prefill_tokens=4096, prompts=prompts).backlog_s for prompts in (1, 4))
    saved = 4096 / BUDGET * COSTS.mixed.per_chunk_context * (2048 - 512)
    assert one - four == pytest.approx(saved)


def test_without_prompts_there_is_no_backlog() -> None:
    assert busy(decodes=10, context=5000).backlog_s == 0.0


# ---------------------------------------------------------------- a request's share of D


FULL = busy(SLOTS, 100 * SLOTS)
DECODE_STEP_S = COSTS.decode.seconds(SLOTS, 100 * SLOTS)


@given(load=LOADS, start=st.integers(0, 4000), steps=st.integers(1, 20))
def test_over_whole_steps_the_share_is_the_rest(load: DecodeLoad, start: int, steps: int) -> None:
    loaded = D.under(load)
    stop = start + steps * loaded.room
    assert loaded.share_seconds(start, stop, 0.0) == pytest.approx(loaded.rest_seconds(start, stop))


def test_a_short_rest_pays_its_part_of_a_step() -> None:
    """The rest of the budget goes to other prompts, whereas a request alone needs the whole step."""
    step_s, tokens = busy(5, 900).step_s, (BUDGET - 5) // 4
    part = tokens / (BUDGET - 5)
    expected = part * (step_s + COSTS.mixed.per_chunk_context * 300) + COSTS.mixed.per_token * tokens
    assert busy(5, 900).share_seconds(300, 300 + tokens, 0.0) == pytest.approx(expected)
    assert busy(5, 900).share_seconds(300, 300 + tokens, 0.0) < busy(5, 900).rest_seconds(300, 300 + tokens)


@given(load=LOADS, start=st.integers(0, 2000), tokens=st.integers(1, 2000))
def test_more_decode_load_never_makes_the_share_less(load: DecodeLoad, start: int, tokens: int) -> None:
    share = D.under(load).share_seconds(start, start + tokens, 0.0)
    for more in (
        DecodeLoad(load.decodes + 1, load.decode_context, load.prefill_tokens, load.prompts),
        DecodeLoad(load.decodes, load.decode_context + 1, load.prefill_tokens, load.prompts),
    ):
        assert D.under(more).share_seconds(start, start + tokens, 0.0) >= share * (1 - 1e-12)


def test_a_d_with_free_slots_decodes_beside_the_chunks() -> None:
    free = busy(SLOTS - 2, 1000, 100, 1)
    assert not free.is_full()
    assert free.share_seconds(0, 100, 10_000.0) == free.share_seconds(0, 100, 0.0)


def test_a_full_d_gives_each_request_its_share_of_the_steps() -> None:
    """output / slots steps, of which those with chunks are counted already."""
    tokens = 3 * FULL.room
    chunks_s = FULL.share_seconds(0, tokens, 0.0)
    assert FULL.share_seconds(0, tokens, 10.0 * SLOTS) == pytest.approx(chunks_s + (10 - 3) * DECODE_STEP_S)
    for output in (2.0 * SLOTS, 3.0 * SLOTS):
        assert FULL.share_seconds(0, tokens, output) == chunks_s


def test_the_prompts_before_will_fill_the_slots() -> None:
    filling = busy(SLOTS - 2, 1000, 100, 2)
    assert filling.is_full()
    assert filling.share_seconds(0, 100, 10_000.0) > filling.share_seconds(0, 100, 0.0)


def test_of_a_step_that_a_short_rest_shares_only_its_part_is_no_decode_step() -> None:
    tokens = FULL.room // 4
    extra_s = FULL.share_seconds(0, tokens, 5.0 * SLOTS) - FULL.share_seconds(0, tokens, 0.0)
    assert extra_s == pytest.approx((5 - tokens / FULL.room) * DECODE_STEP_S)


def test_without_decodes_the_contexts_are_taken_to_be_the_prompt() -> None:
    full = busy(prefill_tokens=1000, prompts=SLOTS)
    expected = (10 - 1000 / BUDGET) * COSTS.decode.seconds(SLOTS, 1000 * SLOTS)
    extra_s = full.share_seconds(0, 1000, 10.0 * SLOTS) - full.share_seconds(0, 1000, 0.0)
    assert extra_s == pytest.approx(expected)
