"""The split of hand-made pairs: bounds and equal stages; test_balancer_finish has the earliest first token, and
tests/property/test_balancer_properties.py the pairs that nobody thought of.
"""

import msgspec
import pytest

from common.costs.models import MixedStepCost, PrefillCost
from services.scheduling.policies.balancer import Balance, Pair, SplitTask, choose_split, without_prefill
from services.scheduling.profiles.stage_times import DecodeLoad, PrefillStage, TransferStage
from tests.unit.scheduling.costs_case import BLOCK, BUDGET, COSTS, EVEN, SLOTS, a_pair

SLOW = PrefillStage(PrefillCost(base=1e6, per_token=1.0))
FAST = PrefillStage(PrefillCost(base=0.0, per_token=1e-12))
BOTH = pytest.mark.parametrize("balance", list(Balance))


def tokens(task: SplitTask, pair: Pair, balance: Balance = Balance.STAGES) -> int:
    return choose_split(task, pair, balance).tokens


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("task", "bounds"),
    [
        (SplitTask(100), (0, 99)),
        (SplitTask(1), (0, 0)),
        (SplitTask(100, held_tokens=40), (40, 99)),
        (SplitTask(100, held_tokens=100), (99, 99)),
        (SplitTask(100, most_tokens=60), (0, 60)),
        (SplitTask(100, most_tokens=100), (0, 99)),
        (SplitTask(100, most_tokens=0), (0, 0)),
        (SplitTask(100, held_tokens=40, most_tokens=30), (40, 40)),
    ],
)
def test_the_bounds_leave_d_the_last_token(task: SplitTask, bounds: tuple[int, int]) -> None:
    assert task.bounds() == bounds


@BOTH
def test_a_p_that_is_absurdly_slow_gets_nothing(balance: Balance) -> None:
    split = choose_split(SplitTask(1000), a_pair(prefill=SLOW), balance)
    assert (split.tokens, split.prefill_s, split.transfer_s) == (0, 0.0, 0.0)
    assert split == without_prefill(SplitTask(1000), a_pair().decode)


@BOTH
@pytest.mark.parametrize("prompt", [2, 16, 17, 100, 1000, 1009, 1024])
def test_a_p_that_is_absurdly_fast_gets_all_but_one(balance: Balance, prompt: int) -> None:
    assert tokens(SplitTask(prompt), a_pair(prefill=FAST), balance) == prompt - 1


@BOTH
def test_a_prompt_of_one_token_is_not_split(balance: Balance) -> None:
    for stage in (SLOW, FAST):
        assert tokens(SplitTask(1), a_pair(prefill=stage), balance) == 0


@BOTH
@pytest.mark.parametrize("most", [0, 1, 40, 48])
def test_p_is_asked_for_no_more_than_it_holds(balance: Balance, most: int) -> None:
    assert tokens(SplitTask(1000, most_tokens=most), a_pair(prefill=FAST), balance) == most


@BOTH
def test_what_d_holds_is_not_computed_again(balance: Balance) -> None:
    split = choose_split(SplitTask(1000, held_tokens=500), a_pair(prefill=SLOW), balance)
    assert (split.tokens, split.prefill_s, split.transfer_s) == (500, 0.0, 0.0)


@BOTH
def test_a_d_that_holds_the_whole_prompt_needs_no_p(balance: Balance) -> None:
    pair = a_pair(prefill=FAST, transfer=TransferStage(100, 1e3, 5.0))
    split = choose_split(SplitTask(1000, held_tokens=1000), pair, balance)
    assert (split.tokens, split.prefill_s, split.transfer_s) == (999, 0.0, 0.0)
    assert split == without_prefill(SplitTask(1000, held_tokens=1000), pair.decode)


# ---------------------------------------------------------------- equal stages


def test_alike_devices_compute_half_each() -> None:
    split = choose_split(SplitTask(1024), a_pair(EVEN))
    assert (split.tokens, split.prefill_s, split.decode_s) == (512, pytest.approx(0.512), pytest.approx(0.512))


@pytest.mark.parametrize(("prompt", "expected"), [(1008, 512), (1000, 496), (1030, 512), (1040, 528)])
def test_the_split_is_the_nearest_block(prompt: int, expected: int) -> None:
    """Equal at half of the prompt; half a block goes up."""
    assert tokens(SplitTask(prompt), a_pair(EVEN)) == expected


def test_the_tokens_that_both_hold_are_no_work() -> None:
    """P computes [256, s) while D computes [s, 1024): equal at 640."""
    split = choose_split(SplitTask(1024, held_tokens=256, prefill_held_tokens=256), a_pair(EVEN))
    assert (split.tokens, split.prefill_s) == (640, pytest.approx(0.384))


def test_backlogs_and_a_link_that_keeps_up_do_not_move_equal_stages() -> None:
    """A hand-off of 512 tokens takes 0.1 s and 0.41 s, no longer than P takes for those of the next request."""
    busy = a_pair(
        EVEN,
        queued=(4000, 300),
        transfer=TransferStage(800, 1e6, 0.1),
        load=DecodeLoad(prefill_tokens=5000, prompts=2),
    )
    assert tokens(SplitTask(1024), busy) == 512


def test_a_link_slower_than_p_is_the_stage_to_balance() -> None:
    """3 ms on the wire for each token, 1 ms at D: a quarter of them goes over it."""
    split = choose_split(SplitTask(1024), a_pair(EVEN, transfer=TransferStage(3000, 1e6, 0.0)))
    assert (split.tokens, split.transfer_s, split.decode_s) == (256, pytest.approx(0.768), pytest.approx(0.768))


@pytest.mark.parametrize(
    "pair",
    [
        a_pair(EVEN, prefill=PrefillStage(PrefillCost(1.5, 1e-6))),
        a_pair(EVEN, prefill=PrefillStage(PrefillCost(0.0, 1e-6), least_s=1.5)),
        a_pair(EVEN, transfer=TransferStage(1, 1e6, 1.5)),
    ],
)
def test_where_p_is_late_with_any_part_the_first_token_decides(pair: Pair) -> None:
    """Only what D has to do before is longer than any part of P."""
    assert tokens(SplitTask(1024), pair) == 0
    busy = msgspec.structs.replace(pair, decode=pair.decode.stage.under(DecodeLoad(prefill_tokens=3000, prompts=1)))
    split = choose_split(SplitTask(1024), busy)
    assert split.tokens > 0
    assert split == choose_split(SplitTask(1024), busy, Balance.FINISH)


def test_equal_stages_share_the_last_step_with_other_prompts() -> None:
    """100 tokens are less than half of a step, and pay for no more."""
    costs = msgspec.structs.replace(
        EVEN, prefill=PrefillCost(0.0, 0.002), mixed=MixedStepCost(BUDGET * 0.001, 0.001, 0.0, 0.0)
    )
    pair = a_pair(costs)
    split = choose_split(SplitTask(96), pair)
    assert split.tokens == 48
    assert split.prefill_s == pytest.approx(pair.decode.share_seconds(48, 96, 0.0))
    assert split.decode_s > 3 * split.prefill_s


def test_a_loaded_d_leaves_more_to_p() -> None:
    loads = [DecodeLoad(decodes, 500 * decodes) for decodes in (0, 20, 60, 200)]
    splits = [tokens(SplitTask(2000), a_pair(load=load)) for load in loads]
    assert splits == sorted(splits)
    assert len(set(splits)) == len(splits)


def test_long_answers_of_a_full_d_leave_more_to_p() -> None:
    full = a_pair(load=DecodeLoad(SLOTS, 500 * SLOTS))
    splits = [tokens(SplitTask(2000, expected_output=output), full) for output in (0.0, 600.0, 1000.0)]
    assert splits == sorted(splits)
    assert splits[0] < splits[-1]
    free = a_pair(load=DecodeLoad(SLOTS // 2, 250 * SLOTS))
    assert tokens(SplitTask(2000, expected_output=1000.0), free) == tokens(SplitTask(2000), free)


def test_chunks_make_p_dearer() -> None:
    whole, chunked = (a_pair(prefill=PrefillStage(COSTS.prefill, chunk)) for chunk in (None, 64))
    assert tokens(SplitTask(2000), chunked) < tokens(SplitTask(2000), whole)


# ---------------------------------------------------------------- what is predicted


def test_the_prediction_adds_up() -> None:
    pair = a_pair(
        queued=(300,),
        transfer=TransferStage(1000, 1e8, 0.001),
        load=DecodeLoad(10, 5000, prefill_tokens=700, prompts=2),
    )
    for balance in Balance:
        split = choose_split(SplitTask(2000), pair, balance)
        handed_over_s = pair.prefill.backlog_s + split.prefill_s + split.transfer_s
        assert split.tokens % BLOCK == 0
        assert split.decode_s == pair.decode.rest_seconds(split.tokens, 2000)
        assert split.first_token_s == pytest.approx(max(handed_over_s, pair.decode.backlog_s) + split.decode_s)


def test_without_p_nothing_is_handed_over() -> None:
    pair = a_pair(load=DecodeLoad(prefill_tokens=700, prompts=2))
    split = without_prefill(SplitTask(1000), pair.decode)
    assert (split.tokens, split.prefill_s, split.transfer_s) == (0, 0.0, 0.0)
    assert split.decode_s == pair.decode.rest_seconds(0, 1000)
    assert split.first_token_s == pair.decode.backlog_s + split.decode_s
