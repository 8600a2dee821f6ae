"""The balancer against brute force, and what more load must never do to a split.

Three conditions recur.  The first two hold for devices as they are, and a profile can break them:

* `falling`: a token of context costs a chunk's step no more than a token of the chunk, k_cp ≤ k_cn.  Then T_chk(L - s)
  falls as s rises, and the stages are equal at one s only.
* `full_steps`: a step of D with a filled budget takes no less than one that decodes in all slots.  Then a decode more
  is never a relief, even where the expected answer is part of the balance.
* `balances`: some part of the prompt is small enough for P to be no later than D.  Where none is, equal stages become
  the earliest first token, and what holds of the one rule need not hold from one to the other.
"""

from itertools import pairwise

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from common.costs.models import DecodeStepCost, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from services.scheduling.policies.balancer import Balance, Pair, SplitTask, choose_split, without_prefill
from services.scheduling.profiles.stage_times import (
    BusyPrefill,
    DecodeLoad,
    DecodeStage,
    PrefillLoad,
    PrefillStage,
    TransferStage,
)

TINY = 1e-9
"""Relative rounding of sums in another order."""
BALANCES = st.sampled_from(list(Balance))
STAGES, FINISH = Balance.STAGES, Balance.FINISH


def seconds(least: float, most: float) -> st.SearchStrategy[float]:
    return st.one_of(st.just(0.0), st.floats(least, most))


@st.composite
def tasks(draw: st.DrawFn, *, counts_decoding: bool = False) -> SplitTask:
    prompt = draw(st.integers(1, 400))
    return SplitTask(
        prompt_tokens=prompt,
        expected_output=draw(st.floats(0.0, 2000.0)) if counts_decoding else 0.0,
        held_tokens=draw(st.one_of(st.just(0), st.integers(0, prompt))),
        prefill_held_tokens=draw(st.one_of(st.just(0), st.integers(0, prompt))),
        most_tokens=draw(st.one_of(st.none(), st.integers(0, prompt + 10))),
    )


@st.composite
def mixed_costs(draw: st.DrawFn, *, falling: bool) -> MixedStepCost:
    per_token = draw(st.floats(1e-6, 2e-3))
    return MixedStepCost(
        base=draw(st.floats(1e-4, 0.1)),
        per_token=per_token,
        per_chunk_context=draw(seconds(1e-9, per_token)) if falling else draw(seconds(1e-9, 2e-2)),
        per_decode_context=draw(seconds(1e-9, 1e-5)),
    )


@st.composite
def pairs(draw: st.DrawFn, *, falling: bool = True, chunked: bool = True) -> Pair:
    """A P that is up to ten times as fast as D or as slow, whatever a token costs there."""
    block_size = draw(st.sampled_from([1, 4, 16, 32]))
    decode = DecodeStage(
        mixed=draw(mixed_costs(falling=falling)),
        decode=DecodeStepCost(draw(st.floats(1e-4, 0.1)), draw(seconds(1e-6, 1e-4)), draw(seconds(1e-9, 1e-5))),
        budget=draw(st.integers(32, 256)),
        slots=draw(st.integers(1, 64)),
    )
    token_s = decode.mixed.per_token + draw(st.sampled_from([0.0, 0.5, 1.0])) * decode.mixed.base / decode.budget
    chunks = st.one_of(st.none(), st.integers(1, 12).map(lambda blocks: blocks * block_size))
    cost = PrefillCost(draw(seconds(1e-4, 0.1)), token_s * draw(st.floats(0.1, 10.0)))
    knee = draw(st.one_of(st.none(), st.floats(0.0, 300.0)))
    least_s = 0.0 if knee is None else cost.base + knee * cost.per_token
    prefill = PrefillStage(cost, draw(chunks) if chunked else None, least_s)
    transfer = TransferStage(
        bytes_per_token=draw(st.integers(0, 100_000)),
        bytes_per_s=draw(st.one_of(st.none(), st.floats(1e6, 1e11))),
        latency_s=draw(seconds(1e-5, 0.1)),
    )
    queued = draw(st.lists(st.integers(0, 400), max_size=2))
    return Pair(prefill.under(PrefillLoad(tuple(queued))), transfer, decode.under(draw(loads())), block_size)


@st.composite
def loads(draw: st.DrawFn) -> DecodeLoad:
    decodes, prompts = draw(st.integers(0, 300)), draw(st.integers(0, 5))
    context = draw(st.integers(0, 2000)) * decodes
    return DecodeLoad(decodes, context, draw(st.integers(0, 800)) if prompts else 0, prompts)


def at_prefill(task: SplitTask, pair: Pair, split: int) -> float:
    """The longer of computing and sending: one goes on while the other does."""
    taken = split - task.held_tokens
    return max(computed(task, pair, split), pair.transfer.seconds(taken))


def computed(task: SplitTask, pair: Pair, split: int) -> float:
    """P's part alone: all that P lacks of it, where D lacks any."""
    return pair.prefill.stage.seconds(split - task.prefill_held_tokens) if split > task.held_tokens else 0.0


def at_decode(task: SplitTask, pair: Pair, split: int) -> float:
    return pair.decode.share_seconds(split, task.prompt_tokens, task.expected_output)


def first_token(task: SplitTask, pair: Pair, split: int) -> float:
    taken = split - task.held_tokens
    handed_over_s = 0.0
    if taken > 0:
        computed_s = pair.prefill.backlog_s + computed(task, pair, split)
        wire_s = pair.transfer.seconds(pair.prefill.backlog_tokens)
        handed_over_s = max(computed_s, wire_s) + pair.transfer.seconds(taken)
    return max(handed_over_s, pair.decode.backlog_s) + pair.decode.rest_seconds(split, task.prompt_tokens)


def allowed(task: SplitTask, block_size: int) -> list[int]:
    """The bounds and the whole blocks between them."""
    least, most = task.bounds()
    return sorted({least, most, *(s for s in range(least, most + 1) if s % block_size == 0)})


def under(pair: Pair, load: DecodeLoad) -> Pair:
    return msgspec.structs.replace(pair, decode=pair.decode.stage.under(load))


def full_steps(pair: Pair) -> bool:
    stage, load = pair.decode.stage, pair.decode.load
    filled = StepShape(chunk_tokens=pair.decode.room, decodes=load.decodes, decode_context=load.decode_context)
    # Where a context is not known, a prompt's length stands for it; none is longer here.
    mean_context = load.decode_context / load.decodes if load.decodes else 400.0
    decoding_s = stage.decode.seconds(stage.slots, int(stage.slots * mean_context))
    # What a chunk saves in its own context by being the last; and a thousandth, for rounding.
    return decoding_s * 1.001 <= stage.mixed.seconds(filled) - stage.mixed.per_chunk_context * pair.decode.room


def whole_chunks(task: SplitTask, pair: Pair) -> bool:
    """Whether the chunks of P end in whole blocks."""
    return pair.prefill.stage.chunk is None or task.prefill_held_tokens % pair.block_size == 0


# ---------------------------------------------------------------- where the split may be


@given(tasks(counts_decoding=True), pairs(falling=False), BALANCES)
def test_the_split_is_a_whole_block_or_a_bound(task: SplitTask, pair: Pair, balance: Balance) -> None:
    least, most = task.bounds()
    split = choose_split(task, pair, balance).tokens
    assert min(task.held_tokens, task.prompt_tokens - 1) == least <= split <= most <= task.prompt_tokens - 1
    assert split % pair.block_size == 0 or split in (least, most)
    if task.most_tokens is not None:
        assert split <= max(least, task.most_tokens)


@given(tasks(counts_decoding=True), pairs(falling=False), BALANCES)
def test_what_is_predicted_is_of_the_split_chosen(task: SplitTask, pair: Pair, balance: Balance) -> None:
    split = choose_split(task, pair, balance)
    assert split.prefill_s == computed(task, pair, split.tokens)
    assert split.transfer_s == pair.transfer.seconds(split.tokens - task.held_tokens)
    assert split.decode_s == pair.decode.rest_seconds(split.tokens, task.prompt_tokens)
    assert split.first_token_s == first_token(task, pair, split.tokens)
    if split.tokens == task.bounds()[0]:
        assert split == without_prefill(task, pair.decode)


# ---------------------------------------------------------------- equal stages


def equal_by_brute_force(task: SplitTask, pair: Pair) -> int:
    """The last s whose P is no later than D; P of no tokens never is."""
    least, most = task.bounds()
    in_time = [s for s in range(least, most + 1) if at_prefill(task, pair, s) <= at_decode(task, pair, s)]
    return max(in_time, default=least)


def nearest_to_equal(task: SplitTask, pair: Pair) -> int:
    equal = equal_by_brute_force(task, pair)
    return min(allowed(task, pair.block_size), key=lambda s: (abs(s - equal), -s))


def balances(task: SplitTask, pair: Pair) -> bool:
    return nearest_to_equal(task, pair) > task.bounds()[0]


@given(tasks(), pairs())
def test_stages_are_equal_at_the_nearest_block_to_where_brute_force_finds_them_so(task: SplitTask, pair: Pair) -> None:
    """Falling, without the answer's length."""
    least, most = task.bounds()
    equal = equal_by_brute_force(task, pair)
    differences = {s: abs(at_prefill(task, pair, s) - at_decode(task, pair, s)) for s in range(least, most + 1)}
    best = min(differences.values())
    assert any(differences[s] == best for s in (equal, min(most, equal + 1))), "the least difference is next to it"
    if balances(task, pair):
        assert choose_split(task, pair).tokens == nearest_to_equal(task, pair)
    else:
        assert choose_split(task, pair) == choose_split(task, pair, FINISH)


@given(tasks(), pairs(), st.floats(0.0, 1.0))
def test_where_p_is_late_with_any_part_the_first_token_decides(task: SplitTask, pair: Pair, more_s: float) -> None:
    """Falling, without the answer's length; every hand-off takes longer than all of it does at D."""
    latency_s = at_decode(task, pair, task.bounds()[0]) * (1 + TINY) + more_s
    late = msgspec.structs.replace(pair, transfer=msgspec.structs.replace(pair.transfer, latency_s=latency_s))
    assert not balances(task, late)
    assert choose_split(task, late, STAGES) == choose_split(task, late, FINISH)


@given(tasks(counts_decoding=True), pairs())
def test_the_same_with_the_length_of_the_answer(task: SplitTask, pair: Pair) -> None:
    """Falling, and full steps."""
    assume(full_steps(pair) and balances(task, pair))
    assert choose_split(task, pair).tokens == nearest_to_equal(task, pair)


@given(tasks(), pairs(chunked=False))
def test_stages_differ_by_less_than_a_step_of_d_or_the_split_is_at_a_bound(task: SplitTask, pair: Pair) -> None:
    """Falling, balances, P in one step; where a step of D holds a block, and P computes and sends one meanwhile (two
    tokens at least).
    """
    decode = pair.decode
    block = max(2, pair.block_size)
    least, most = task.bounds()
    split = choose_split(task, pair).tokens
    shape = StepShape(decode.room, split + block, decode.load.decodes, decode.load.decode_context)
    step_s = decode.stage.mixed.seconds(shape)
    sent_s = pair.transfer.seconds(block) - pair.transfer.latency_s
    # Else P's time jumps where its KV ends.
    assume(task.prefill_held_tokens == task.held_tokens)
    assume(decode.room >= block and max(block * pair.prefill.stage.cost.per_token, sent_s) <= step_s)
    assume(balances(task, pair))
    if split not in (least, most):
        assert abs(at_prefill(task, pair, split) - at_decode(task, pair, split)) < step_s


# ---------------------------------------------------------------- the earliest first token


@given(tasks(), pairs(falling=False))
def test_no_other_split_has_an_earlier_first_token(task: SplitTask, pair: Pair) -> None:
    """Whatever the costs, with the wire's queue and the least time of a step; ends of chunks are whole blocks here."""
    assume(whole_chunks(task, pair))
    others = [first_token(task, pair, split) for split in allowed(task, pair.block_size)]
    assert choose_split(task, pair, FINISH).first_token_s <= min(others) * (1 + TINY)


@given(tasks(), pairs(), st.integers(1, 300))
def test_odd_chunks_cost_no_more_than_a_block(task: SplitTask, pair: Pair, chunk: int) -> None:
    """The ends of these are in no block's end: the choice may be late by what D needs for one block."""
    stage = msgspec.structs.replace(pair.prefill.stage, chunk=chunk)
    pair = msgspec.structs.replace(pair, prefill=msgspec.structs.replace(pair.prefill, stage=stage))
    splits = allowed(task, pair.block_size)
    rests = [pair.decode.rest_seconds(split, task.prompt_tokens) for split in splits]
    block_s = max([early - late for early, late in pairwise(rests)], default=0.0)
    best = min(first_token(task, pair, split) for split in splits)
    assert choose_split(task, pair, FINISH).first_token_s <= (best + block_s) * (1 + TINY)


@given(tasks(), pairs())
def test_equal_stages_are_never_earlier_than_the_earliest(task: SplitTask, pair: Pair) -> None:
    assume(whole_chunks(task, pair))
    earliest = choose_split(task, pair, FINISH).first_token_s
    assert earliest <= choose_split(task, pair, STAGES).first_token_s * (1 + TINY)
    assert earliest <= without_prefill(task, pair.decode).first_token_s * (1 + TINY)


# ---------------------------------------------------------------- more load at D, a slower P


@st.composite
def more_load(draw: st.DrawFn, load: DecodeLoad) -> DecodeLoad:
    return DecodeLoad(
        decodes=load.decodes + draw(st.integers(0, 50)),
        decode_context=load.decode_context + draw(st.integers(0, 50_000)),
        prefill_tokens=load.prefill_tokens + draw(st.integers(0, 3000)),
        prompts=load.prompts,
    )


@given(tasks(), pairs(), st.data())
def test_more_load_at_d_never_leaves_less_to_p_under_equal_stages(
    task: SplitTask, pair: Pair, data: st.DataObject
) -> None:
    """Falling, balances, without the answer's length: any more decodes, contexts and prompt tokens."""
    assume(balances(task, pair))
    loaded = under(pair, data.draw(more_load(pair.decode.load)))
    assert choose_split(task, loaded).tokens >= choose_split(task, pair).tokens


@given(tasks(), pairs(falling=False), st.data())
def test_more_load_at_d_never_leaves_less_to_p_under_the_earliest_first_token(
    task: SplitTask, pair: Pair, data: st.DataObject
) -> None:
    """Whatever the costs."""
    assume(whole_chunks(task, pair))
    loaded = under(pair, data.draw(more_load(pair.decode.load)))
    splits = [choose_split(task, each, FINISH).tokens for each in (pair, loaded)]
    if splits[1] < splits[0]:
        # Only of two that are equal but for rounding may it be the smaller.
        other = first_token(task, loaded, splits[0])
        assert other <= first_token(task, loaded, splits[1]) * (1 + TINY)


@given(tasks(counts_decoding=True), pairs(), st.integers(1, 50))
def test_more_decodes_never_leave_less_to_p_where_the_answer_counts(task: SplitTask, pair: Pair, more: int) -> None:
    """Falling, full steps, balances, and the decodes that come have the mean context of those there; a D that was not
    full may get full.
    """
    load = pair.decode.load
    assume(load.decodes > 0)
    mean_context = load.decode_context // load.decodes
    loaded = under(
        pair,
        msgspec.structs.replace(load, decodes=load.decodes + more, decode_context=(load.decodes + more) * mean_context),
    )
    assume(full_steps(pair) and full_steps(loaded) and balances(task, pair))
    assert choose_split(task, loaded).tokens >= choose_split(task, pair).tokens


@given(tasks(counts_decoding=True), pairs(), st.floats(1.0, 20.0), BALANCES)
def test_a_slower_p_never_gets_more(task: SplitTask, pair: Pair, factor: float, balance: Balance) -> None:
    """Falling; under equal stages full steps, where the answer counts, and the slower one balances."""
    assume(balance is FINISH or task.expected_output == 0 or full_steps(pair))
    assume(balance is STAGES or whole_chunks(task, pair))
    stage = pair.prefill.stage
    cost = PrefillCost(stage.cost.base * factor, stage.cost.per_token * factor)
    slowed = PrefillStage(cost, stage.chunk, stage.least_s * factor)
    busy = BusyPrefill(slowed, pair.prefill.backlog_s * factor, pair.prefill.backlog_tokens)
    slower = msgspec.structs.replace(pair, prefill=busy)
    assume(balance is FINISH or balances(task, slower))
    splits = [choose_split(task, each, balance).tokens for each in (pair, slower)]
    if splits[1] > splits[0]:
        assert balance is FINISH
        assert first_token(task, slower, splits[0]) <= first_token(task, slower, splits[1]) * (1 + TINY)
