"""Schedules worked out by hand, with every time. Blocks of 4 tokens, 8 tokens per step unless said otherwise."""

import pytest
from engine_case import Driver, decode, end, landed, prefill

from services.simulator.engine.events import BlocksReserved, Finished, FirstToken, PrefillAdvanced, PrefillComputed

A, B, C = 1, 2, 3


@pytest.fixture(params=[True, False], ids=["jumps", "steps"])
def jumps(request: pytest.FixtureRequest) -> bool:
    """Whether runs of decodes are made in one go: no time below depends on it."""
    return bool(request.param)


def test_three_requests_of_one_aggregated_instance(jumps: bool) -> None:
    # begin    what is computed                                    seconds          end
    #  0       A's prompt, 6 tokens                                1 + 6/4  = 2.5    2.5   A's 1st
    #  2.5     A, and of B's 10 tokens the 7 that are left         1 + 8/4  = 3      5.5   A's 2nd
    #  5.5     A, B's last 3, C's 2 (it came at 3)                 1 + 6/4  = 2.5    8     A's 3rd, B's and C's 1st
    #  8       B and C, contexts 10 and 2                          1 + 12/8 = 2.5   10.5   B's and C's 2nd
    driver = Driver(jumps=jumps)
    events = driver.run((0.0, decode(A, 6, 3)), (0.5, decode(B, 10, 2)), (3.0, decode(C, 2, 2)))
    assert events == [
        FirstToken(A, 2.5),
        Finished(A, 8.0),
        FirstToken(B, 8.0),
        FirstToken(C, 8.0),
        Finished(B, 10.5),
        Finished(C, 10.5),
    ]
    # A: 2.5 → 5.5 → 8; B and C: 8 → 10.5.
    assert driver.gaps.all == [3.0, 2.5, 2.5, 2.5]
    counters = driver.engine.counters
    assert (counters.steps, counters.mixed_steps, counters.busy_s) == (4, 3, 10.5)
    assert (counters.prompt_tokens, counters.output_tokens) == (18, 7)


def test_kv_that_lands_while_another_request_decodes(jumps: bool) -> None:
    # B comes at 1 with 8 of its 12 tokens on their way; A runs alone until they have landed, at 4.
    #  0       A's prompt, 4 tokens                                1 + 4/4  = 2      2     A's 1st; B gets its blocks
    #  2       A, context 4                                        1 + 4/8  = 1.5    3.5   A's 2nd
    #  3.5     A, context 5                                        1 + 5/8  = 1.625  5.125 A's 3rd
    #  5.125   A, B's last 4 tokens                                1 + 5/4  = 2.25   7.375 A's 4th, B's 1st
    #  7.375   A and B, contexts 7 and 12                          1 + 19/8 = 3.375 10.75  A's 5th, B's 2nd
    # 10.75    A, context 8                                        1 + 8/8  = 2     12.75  A's 6th
    driver = Driver(jumps=jumps)
    events = driver.run((0.0, decode(A, 4, 6)), (1.0, decode(B, 12, 2, split=8)), (4.0, landed(B)))
    assert events == [
        FirstToken(A, 2.0),
        BlocksReserved(B, 2.0),
        FirstToken(B, 7.375),
        Finished(B, 10.75),
        Finished(A, 12.75),
    ]
    # The last but one is twice there: A's fifth token and B's second come together.
    assert driver.gaps.all == [1.5, 1.625, 2.25, 3.375, 3.375, 2.0]


def test_a_full_split_leaves_one_token_that_is_computed_as_a_decode(jumps: bool) -> None:
    # 0: the blocks; 3: the KV of 5 of 6 tokens has landed; the last one: 1 + 5/8 = 1.625; the next: 1 + 6/8 = 1.75.
    driver = Driver(jumps=jumps)
    events = driver.run((0.0, decode(A, 6, 2, split=5)), (3.0, landed(A)))
    assert events == [BlocksReserved(A, 0.0), FirstToken(A, 4.625), Finished(A, 6.375)]
    assert driver.gaps.all == [1.75]


def test_the_newest_gives_way_and_its_gap_is_the_whole_pause(jumps: bool) -> None:
    # 4 blocks. A may grow to 12 tokens (3 blocks), B to 9.
    #  0       both prompts, 4 tokens each, a block each           1 + 8/4  = 3      3     both 1st
    #  3       both, contexts 4 and 4; each takes a second block   1 + 8/8  = 2      5     both 2nd
    #  5       both, 5 and 5                                       1 + 10/8 = 2.25   7.25  both 3rd
    #  7.25    both, 6 and 6                                       1 + 12/8 = 2.5    9.75  both 4th
    #  9.75    both, 7 and 7                                       1 + 14/8 = 2.75  12.5   both 5th
    # 12.5     A, 8; it needs a third block: B gives way           1 + 8/8  = 2     14.5   A's 6th
    # 14.5     A, 9 (B would need 3 blocks for its 9 tokens)       1 + 9/8  = 2.125 16.625 A's 7th
    # 16.625   A, 10                                               1 + 10/8 = 2.25  18.875 A's 8th
    # 18.875   A, 11                                               1 + 11/8 = 2.375 21.25  A's 9th and last
    # 21.25    8 of B's 9 tokens again                             1 + 8/4  = 3     24.25
    # 24.25    B's ninth token, as a decode                        1 + 8/8  = 2     26.25  B's 6th and last
    driver = Driver(num_blocks=4, jumps=jumps)
    events = driver.run((0.0, decode(A, 4, 9)), (0.0, decode(B, 4, 6)))
    assert events == [FirstToken(A, 3.0), FirstToken(B, 3.0), Finished(A, 21.25), Finished(B, 26.25)]
    both, alone = [2.0, 2.25, 2.5, 2.75], [2.0, 2.125, 2.25, 2.375]
    assert driver.gaps.all == [gap for gap in both for _ in (A, B)] + alone + [26.25 - 12.5]
    assert driver.engine.counters.preemptions == 1
    assert driver.engine.counters.prompt_tokens == 8 + 8


def test_a_prefill_instance_computes_a_prompt_per_step_and_holds_its_blocks() -> None:
    # 4 blocks: A's 5 tokens take two, B's 3 one; C's 8 need two, so it waits until A is ended, which takes effect at 4.
    #  0       A's 5 tokens                                        1 + 5/4 = 2.25    2.25
    #  2.25    B's 3 tokens                                        1 + 3/4 = 1.75    4
    #  4       C's 8 tokens                                        1 + 8/4 = 3       7
    driver = Driver(num_blocks=4, budget=None, prompts_per_step=1)
    commands = [(0.0, prefill(A, 5)), (0.0, prefill(B, 3)), (0.0, prefill(C, 8)), (3.0, end(A))]
    assert driver.run(*commands) == [
        BlocksReserved(A, 0.0),
        BlocksReserved(B, 0.0),
        PrefillAdvanced(A, 0.0, 2.25, 0, 5),
        PrefillComputed(A, 2.25),
        PrefillAdvanced(B, 2.25, 4.0, 0, 3),
        PrefillComputed(B, 4.0),
        BlocksReserved(C, 4.0),
        PrefillAdvanced(C, 4.0, 7.0, 0, 8),
        PrefillComputed(C, 7.0),
    ]
    assert driver.engine.load(7.0).blocks_used == 3
    driver.run((8.0, end(B)), (8.0, end(C)))
    assert driver.engine.load(8.0).blocks_used == 0
    assert driver.gaps.all == []


def test_a_prefill_in_chunks_reports_each() -> None:
    # Chunks of 4: 1 + 4/4 = 2 s; the ninth token is left alone and computed as a decode: 1 + 8/8 = 2 s.
    driver = Driver(budget=None, prompts_per_step=1, chunk=4)
    assert driver.run((0.0, prefill(A, 9))) == [
        BlocksReserved(A, 0.0),
        PrefillAdvanced(A, 0.0, 2.0, 0, 4),
        PrefillAdvanced(A, 2.0, 4.0, 4, 8),
        PrefillAdvanced(A, 4.0, 6.0, 8, 9),
        PrefillComputed(A, 6.0),
    ]
