"""The split with the earliest first token, of hand-made pairs: each turning point is the best of some pair."""

import msgspec
import pytest

from common.costs.models import MixedStepCost, PrefillCost
from services.scheduling.policies.balancer import Balance, Pair, Split, SplitTask, choose_split, without_prefill
from services.scheduling.profiles.stage_times import BusyPrefill, DecodeLoad, PrefillStage, TransferStage
from tests.unit.scheduling.costs_case import BUDGET, EVEN, a_pair


def finish(task: SplitTask, pair: Pair) -> Split:
    return choose_split(task, pair, Balance.FINISH)


def tokens(task: SplitTask, pair: Pair) -> int:
    return finish(task, pair).tokens


def test_p_computes_what_it_can_while_d_is_busy() -> None:
    """D is busy for a second, in which a P that is not computes 1000 tokens; beyond, both would take as long."""
    pair = a_pair(EVEN, load=DecodeLoad(prefill_tokens=1000, prompts=1))
    split = finish(SplitTask(1600), pair)
    assert split.tokens in range(992, 1600)
    assert split.first_token_s == pytest.approx(1.6)


def test_with_an_idle_d_the_quicker_device_computes() -> None:
    idle_s = without_prefill(SplitTask(2048), a_pair(EVEN).decode).first_token_s
    slower = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 0.0011))
    assert finish(SplitTask(2048), a_pair(slower)).first_token_s == idle_s
    quicker = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 0.0009))
    assert tokens(SplitTask(2048), a_pair(quicker)) == 2047


def test_the_block_that_ends_just_too_late_may_be_the_best() -> None:
    """P hands over 127 tokens in time, and 128 a millisecond after; 112 would leave D 16 tokens more."""
    load = DecodeLoad(prefill_tokens=254, prompts=1)
    dear = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 0.002))
    assert tokens(SplitTask(1600), a_pair(dear, load=load)) == 128


@pytest.mark.parametrize("least_s", [0.0, 0.07])
def test_p_begins_no_chunk_for_a_few_tokens(least_s: float) -> None:
    """A whole chunk of 128 takes P 114 ms and saves D 128; the 63 tokens after twelve of them take P longer than D."""
    stage = PrefillStage(PrefillCost(base=0.05, per_token=0.0005), chunk=128, least_s=least_s)
    assert tokens(SplitTask(1600), a_pair(EVEN, prefill=stage)) == 12 * 128


def test_p_takes_what_saves_d_whole_steps() -> None:
    """A token costs P more than a token of D, but less than it and its part of D's base: D keeps one full step."""
    costs = msgspec.structs.replace(
        EVEN, prefill=PrefillCost(0.0, 0.0015), mixed=MixedStepCost(BUDGET * 0.001, 0.001, 0.0, 0.0)
    )
    assert tokens(SplitTask(4096), a_pair(costs)) == 4096 - BUDGET


def test_where_context_is_dearer_than_tokens_d_computes_from_the_start() -> None:
    """P would be done at once, but D pays 10 ms for each token of context and 1 ms for each that it computes."""
    costs = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 1e-9), mixed=MixedStepCost(0.0, 0.001, 0.01, 0.0))
    assert tokens(SplitTask(300), a_pair(costs, load=DecodeLoad(prefill_tokens=900, prompts=3))) == 0


def test_a_backlog_at_p_counts_against_it() -> None:
    load = DecodeLoad(prefill_tokens=1000, prompts=1)
    splits = [tokens(SplitTask(1600), a_pair(EVEN, queued=queued, load=load)) for queued in ((), (400,), (400, 700))]
    assert splits[0] > splits[1] > splits[2] == 0


def test_a_slow_link_counts_against_p() -> None:
    load = DecodeLoad(prefill_tokens=1000, prompts=1)
    slow = a_pair(EVEN, transfer=TransferStage(1000, 1e6, 0.01), load=load)
    split = finish(SplitTask(1600), slow)
    assert split.tokens in range(480, 500), "a token takes 1 ms to compute and 1 ms to send, in 990 ms"
    assert split.transfer_s == pytest.approx(0.01 + split.tokens * 1e-3)


def test_hand_offs_take_their_turn_on_the_wire() -> None:
    """P takes 0.1 s for the 100 tokens before, the wire 0.5 s: of a second, 0.5 s are left for 5 ms per token."""
    load = DecodeLoad(prefill_tokens=1000, prompts=1)
    pair = a_pair(EVEN, queued=(100,), transfer=TransferStage(5000, 1e6, 0.0), load=load, block_size=1)
    split = finish(SplitTask(1600), pair)
    assert split.tokens == 100
    assert split.first_token_s == pytest.approx(2.5)
    idle = a_pair(EVEN, transfer=TransferStage(5000, 1e6, 0.0), load=load, block_size=1)
    assert tokens(SplitTask(1600), idle) == 166, "6 ms for each"


def test_p_computes_what_the_wire_leaves_it_time_for() -> None:
    """The wire is taken for 0.6 s, in which P computes 300 tokens of 2 ms. One more would cost more than D's 1 ms, and
    one less saves nothing but 0.1 ms on the wire.
    """
    dear = msgspec.structs.replace(EVEN, prefill=PrefillCost(0.0, 0.002))
    pair = a_pair(dear, transfer=TransferStage(100, 1e6, 0.0), block_size=1)
    load = DecodeLoad(prefill_tokens=550, prompts=1)
    waited = BusyPrefill(pair.prefill.stage, 0.0, backlog_tokens=6000)
    busy = Pair(waited, pair.transfer, pair.decode.stage.under(load), 1)
    split = finish(SplitTask(1600), busy)
    assert (split.tokens, split.first_token_s) == (300, pytest.approx(0.6 + 0.03 + 1.3))


@pytest.mark.parametrize(("block_size", "expected"), [(1, 150), (16, 144), (150, 150)])
def test_p_computes_what_takes_no_longer_than_its_least_step(block_size: int, expected: int) -> None:
    """150 tokens take P 0.3 s, and so does one; those after them take it 2 ms each and D 1 ms, as D waits already."""
    stage = PrefillStage(PrefillCost(0.0, 0.002), least_s=0.3)
    load = DecodeLoad(prefill_tokens=200, prompts=1)
    pair = a_pair(EVEN, prefill=stage, load=load, block_size=block_size)
    split = finish(SplitTask(1600), pair)
    assert (split.tokens, split.first_token_s) == (expected, pytest.approx(0.3 + (1600 - expected) * 0.001))


def test_between_two_tokens_may_be_what_p_can_do_in_its_least_step() -> None:
    """In it are 150.1 tokens: the 151st takes P 1.8 ms more, and D 1.9 ms."""
    costs = msgspec.structs.replace(EVEN, mixed=MixedStepCost(0.0, 0.0019, 0.0, 0.0))
    stage = PrefillStage(PrefillCost(0.0, 0.002), least_s=0.3002)
    load = DecodeLoad(prefill_tokens=100, prompts=1)
    assert tokens(SplitTask(1600), a_pair(costs, prefill=stage, load=load, block_size=1)) == 151


def test_each_chunk_has_a_least_step() -> None:
    """D is busy for 1.02 s, in which P computes three chunks of 160 in 0.864 s. A fourth step takes at least 0.18 s, in
    which 100 tokens fit: these save D 0.17 s and make it wait for 0.024 s.
    """
    costs = msgspec.structs.replace(EVEN, mixed=MixedStepCost(0.0, 0.0017, 0.0, 0.0))
    stage = PrefillStage(PrefillCost(0.0, 0.0018), chunk=160, least_s=0.18)
    pair = a_pair(costs, prefill=stage, load=DecodeLoad(prefill_tokens=600, prompts=1), block_size=20)
    split = finish(SplitTask(1720), pair)
    assert split.tokens == 3 * 160 + 100
    assert split.first_token_s == pytest.approx(0.864 + 0.18 + 0.0017 * (1720 - 580))
