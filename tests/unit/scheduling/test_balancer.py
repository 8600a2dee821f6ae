"""The split of hand-made pairs; tests/property/test_balancer_properties.py has the pairs that nobody thought of."""

import msgspec
import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from services.scheduling.balancer import Balance, Pair, SplitTask, choose_split, without_prefill
from services.scheduling.stage_times import BusyPrefill, DecodeLoad, PrefillStage, TransferStage
from tests.unit.scheduling.costs_case import BLOCK, BUDGET, COSTS, SLOTS, a_pair

EVEN = InstanceCosts(
    prefill=PrefillCost(base=0.0, per_token=0.001),
    mixed=MixedStepCost(base=0.0, per_token=0.001, per_chunk_context=0.0, per_decode_context=0.0),
    decode=DecodeStepCost(base=0.1, per_sequence=0.0, per_context=0.0),
)
"""P and D take a millisecond per token, and nothing else costs anything."""
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


def test_the_tokens_that_d_holds_are_no_work_for_p() -> None:
    """P computes [256, s) while D computes [s, 1024): equal at 640."""
    split = choose_split(SplitTask(1024, held_tokens=256), a_pair(EVEN))
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


# ---------------------------------------------------------------- the earliest first token


def test_p_computes_what_it_can_while_d_is_busy() -> None:
    """D is busy for a second, in which a P that is not computes 1000 tokens; beyond, both would take as long."""
    pair = a_pair(EVEN, load=DecodeLoad(prefill_tokens=1000, prompts=1))
    split = choose_split(SplitTask(1600), pair, Balance.FINISH)
    assert split.tokens in range(992, 1600)
    assert split.first_token_s == pytest.approx(1.6)


def test_with_an_idle_d_the_quicker_device_computes() -> None:
    idle_s = without_prefill(SplitTask(2048), a_pair(EVEN).decode).first_token_s
    slower = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 0.0011))
    assert choose_split(SplitTask(2048), a_pair(slower), Balance.FINISH).first_token_s == idle_s
    quicker = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 0.0009))
    assert tokens(SplitTask(2048), a_pair(quicker), Balance.FINISH) == 2047


def test_the_block_that_ends_just_too_late_may_be_the_best() -> None:
    """P hands over 127 tokens in time, and 128 a millisecond after; 112 would leave D 16 tokens more."""
    load = DecodeLoad(prefill_tokens=254, prompts=1)
    dear = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 0.002))
    assert tokens(SplitTask(1600), a_pair(dear, load=load), Balance.FINISH) == 128


def test_p_begins_no_chunk_for_a_few_tokens() -> None:
    """A whole chunk of 128 takes P 114 ms and saves D 128; the 63 tokens after twelve of them take P longer than D."""
    stage = PrefillStage(PrefillCost(base=0.05, per_token=0.0005), chunk=128)
    assert tokens(SplitTask(1600), a_pair(EVEN, prefill=stage), Balance.FINISH) == 12 * 128


def test_p_takes_what_saves_d_whole_steps() -> None:
    """A token costs P more than a token of D, but less than it and its part of D's base: D keeps one full step."""
    costs = msgspec.structs.replace(
        EVEN, prefill=PrefillCost(0.0, 0.0015), mixed=MixedStepCost(BUDGET * 0.001, 0.001, 0.0, 0.0)
    )
    assert tokens(SplitTask(4096), a_pair(costs), Balance.FINISH) == 4096 - BUDGET


def test_a_backlog_at_p_counts_against_it() -> None:
    load = DecodeLoad(prefill_tokens=1000, prompts=1)
    splits = [
        tokens(SplitTask(1600), a_pair(EVEN, queued=queued, load=load), Balance.FINISH)
        for queued in ((), (400,), (400, 700))
    ]
    assert splits[0] > splits[1] > splits[2] == 0


def test_a_slow_link_counts_against_p() -> None:
    load = DecodeLoad(prefill_tokens=1000, prompts=1)
    slow = a_pair(EVEN, transfer=TransferStage(1000, 1e6, 0.01), load=load)
    split = choose_split(SplitTask(1600), slow, Balance.FINISH)
    assert split.tokens in range(480, 500), "a token takes 1 ms to compute and 1 ms to send, in 990 ms"
    assert split.transfer_s == pytest.approx(0.01 + split.tokens * 1e-3)


def test_hand_offs_take_their_turn_on_the_wire() -> None:
    """P takes 0.1 s for the 100 tokens before, the wire 0.5 s: of a second, 0.5 s are left for 5 ms per token."""
    load = DecodeLoad(prefill_tokens=1000, prompts=1)
    pair = a_pair(EVEN, queued=(100,), transfer=TransferStage(5000, 1e6, 0.0), load=load, block_size=1)
    split = choose_split(SplitTask(1600), pair, Balance.FINISH)
    assert split.tokens == 100
    assert split.first_token_s == pytest.approx(2.5)
    idle = a_pair(EVEN, transfer=TransferStage(5000, 1e6, 0.0), load=load, block_size=1)
    assert tokens(SplitTask(1600), idle, Balance.FINISH) == 166, "6 ms for each"


def test_p_computes_what_the_wire_leaves_it_time_for() -> None:
    """The wire is taken for 0.6 s, in which P computes 300 tokens of 2 ms. One more would cost more than D's 1 ms, and
    one less saves nothing but 0.1 ms on the wire.
    """
    dear = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 0.002))
    pair = a_pair(dear, transfer=TransferStage(100, 1e6, 0.0), block_size=1)
    load = DecodeLoad(prefill_tokens=550, prompts=1)
    waited = BusyPrefill(pair.prefill.stage, 0.0, backlog_tokens=6000)
    busy = Pair(waited, pair.transfer, pair.decode.stage.under(load), 1)
    split = choose_split(SplitTask(1600), busy, Balance.FINISH)
    assert (split.tokens, split.first_token_s) == (300, pytest.approx(0.6 + 0.03 + 1.3))


@pytest.mark.parametrize(("block_size", "expected"), [(1, 150), (16, 144), (150, 150)])
def test_p_computes_what_takes_no_longer_than_its_least_step(block_size: int, expected: int) -> None:
    """150 tokens take P 0.3 s, and so does one; those after them take it 2 ms each and D 1 ms, as D waits already."""
    stage = PrefillStage(PrefillCost(0.0, 0.002), least_s=0.3)
    load = DecodeLoad(prefill_tokens=200, prompts=1)
    pair = a_pair(EVEN, prefill=stage, load=load, block_size=block_size)
    split = choose_split(SplitTask(1600), pair, Balance.FINISH)
    assert (split.tokens, split.first_token_s) == (expected, pytest.approx(0.3 + (1600 - expected) * 0.001))


def test_between_two_tokens_may_be_what_p_can_do_in_its_least_step() -> None:
    """In it are 150.1 tokens: the 151st takes P 1.8 ms more, and D 1.9 ms."""
    costs = msgspec.structs.replace(EVEN, mixed=MixedStepCost(0.0, 0.0019, 0.0, 0.0))
    stage = PrefillStage(PrefillCost(0.0, 0.002), least_s=0.3002)
    load = DecodeLoad(prefill_tokens=100, prompts=1)
    assert tokens(SplitTask(1600), a_pair(costs, prefill=stage, load=load, block_size=1), Balance.FINISH) == 151


def test_each_chunk_has_a_least_step() -> None:
    """D is busy for 1.02 s, in which P computes three chunks of 160 in 0.864 s. A fourth step takes at least 0.18 s, in
    which 100 tokens fit: these save D 0.17 s and make it wait for 0.024 s.
    """
    costs = msgspec.structs.replace(EVEN, mixed=MixedStepCost(0.0, 0.0017, 0.0, 0.0))
    stage = PrefillStage(PrefillCost(0.0, 0.0018), chunk=160, least_s=0.18)
    pair = a_pair(costs, prefill=stage, load=DecodeLoad(prefill_tokens=600, prompts=1), block_size=20)
    split = choose_split(SplitTask(1720), pair, Balance.FINISH)
    assert split.tokens == 3 * 160 + 100
    assert split.first_token_s == pytest.approx(0.864 + 0.18 + 0.0017 * (1720 - 580))


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
