"""Schedules worked out with pencil and paper, through the whole loop. Times are seconds; all are exact in binary."""

from services.scheduling.policies.weighted import WeightedPolicy
from tests.unit.simulator.simulation_case import (
    LinearTimer,
    cluster,
    decode,
    finished,
    first_tokens,
    handed_over,
    link_busy_s,
    placed,
    prefill,
    simulation,
)


def test_three_requests_on_one_instance() -> None:
    # A step takes 1 + its tokens + the contexts of its decodes; 8 tokens at most.
    # [0, 7)    A: its 6 tokens of prompt.                                                  1 + 6
    # [7, 22)   A decodes on 6; B and C share the other 7: C gets 3, B 4.                   1 + 8 + 6
    # [22, 37)  A decodes on 7; B has 6 left.                                               1 + 7 + 7
    # [37, 49)  B decodes on 10.                                                            1 + 1 + 10
    run = simulation(
        cluster(decode("d", LinearTimer(1.0, 1.0, 1.0))), WeightedPolicy(), (0.0, 6, 3), (1.0, 10, 2), (2.0, 3, 1)
    )
    assert placed(run) == [0.0, 1.0, 2.0]
    assert first_tokens(run) == [7.0, 37.0, 22.0]
    assert finished(run) == [37.0, 49.0, 22.0]
    counters = run.workers["d"].engine.counters
    assert (counters.steps, counters.mixed_steps, counters.busy_s) == (4, 3, 49.0)
    assert (run.gaps.count, run.gaps.total_s, run.gaps.max_s) == (3, 15.0 + 15.0 + 12.0, 15.0)


def test_a_run_of_decode_steps_is_cut_at_the_step_in_which_a_request_comes() -> None:
    # A step takes 1 + the contexts of its decodes: A's are [0, 1), [1, 4), [4, 8), [8, 13), [13, 19) on 2, 3, 4, 5.
    # B comes during the fourth, is computed in [13, 19) beside A's last token, and decodes on 3 alone in [19, 23).
    run = simulation(cluster(decode("d", LinearTimer(base=1.0, per_context=1.0))), 0, (0.0, 2, 5), (9.5, 3, 2))
    assert first_tokens(run) == [1.0, 19.0]
    assert finished(run) == [19.0, 23.0]
    assert (run.gaps.count, run.gaps.total_s, run.gaps.max_s) == (5, 3.0 + 4.0 + 5.0 + 6.0 + 4.0, 6.0)


def test_a_split_through_a_slow_p_and_a_link_to_a_fast_d() -> None:
    # P computes a token a second: 8 tokens in 8 s, a layer every 2 s. A layer is 32 bytes, 1 s on the wire, and comes
    # 0.5 s later. Every step of D takes 1 s. P has two slots.
    # A: P [0, 8). Layers leave at 2, 4, 6 and 8; the last is through at 9, there at 9.5. D computes the last 4 tokens
    #    in [9.5, 10.5), decodes in [10.5, 11.5). P's engine learns of it when B's step ends, at 16.
    # B: P [8, 16), there at 17.5. D computes the last 2 in [17.5, 18.5).
    # C: waits for a slot until 16. P [16, 24), there at 25.5: P is idle, and free at once. D computes the last one in
    #    [25.5, 26.5), decodes until 28.5.
    run = simulation(
        cluster(
            prefill("p", LinearTimer(per_token=1.0)),
            decode("d", LinearTimer(base=1.0)),
            bytes_per_s=32.0,
            latency_s=0.5,
        ),
        8,
        (0.0, 12, 2),
        (1.0, 10, 1),
        (2.0, 9, 3),
    )
    assert placed(run) == [0.0, 1.0, 16.0]
    assert handed_over(run) == [9.5, 17.5, 25.5]
    assert first_tokens(run) == [10.5, 18.5, 26.5]
    assert finished(run) == [11.5, 18.5, 28.5]
    p, d = run.workers["p"], run.workers["d"]
    assert (p.engine.counters.busy_s, p.engine.counters.prompt_tokens) == (24.0, 24)
    assert (d.engine.counters.busy_s, d.engine.counters.steps) == (6.0, 6)
    # 3 × 8 tokens of 16 bytes at 32 bytes/s.
    assert link_busy_s(run, "p") == 12.0
    assert (run.gaps.count, run.gaps.total_s) == (3, 3.0)


def test_an_instance_takes_no_more_than_it_has_places_for() -> None:
    # One sequence at a time, and one request outstanding: B waits at the gateway until A has its last token.
    run = simulation(
        cluster(decode("d", LinearTimer(base=1.0), max_batch=1)), 0, (0.0, 2, 2), (0.5, 2, 1), decode_batches=1
    )
    assert placed(run) == [0.0, 2.0]
    assert finished(run) == [2.0, 3.0]


def test_a_chunk_has_left_before_the_next_is_computed() -> None:
    # Chunks of 4 tokens: [0, 4) and [4, 8). A layer of a chunk is ready every second and half a second on the wire, so
    # the last is through at 8.5; D then computes the last token in a second.
    run = simulation(
        cluster(prefill("p", LinearTimer(per_token=1.0), budget=4), decode("d", LinearTimer(1.0)), bytes_per_s=32.0),
        8,
        (0.0, 9, 1),
    )
    assert handed_over(run) == [8.5]
    assert finished(run) == [9.5]


def test_a_link_slower_than_p_carries_from_the_first_layer_on() -> None:
    # The first layer is ready at 2; all 128 bytes then need 16 s.
    run = simulation(
        cluster(prefill("p", LinearTimer(per_token=1.0)), decode("d", LinearTimer(1.0)), bytes_per_s=8.0),
        8,
        (0.0, 9, 1),
    )
    assert handed_over(run) == [18.0]
    assert finished(run) == [19.0]


def test_a_slot_of_p_holds_the_next_request_back() -> None:
    # As above, with 8 tokens in 8 s at P, a second for a layer on the wire and half a second of latency, but one slot:
    # P does nothing while its KV is on its way.
    # A: P [0, 8), there at 9.5. B: P [9.5, 17.5), there at 19. C: P [19, 27), there at 28.5.
    run = simulation(
        cluster(
            prefill("p", LinearTimer(per_token=1.0)),
            decode("d", LinearTimer(base=1.0)),
            bytes_per_s=32.0,
            latency_s=0.5,
        ),
        8,
        (0.0, 12, 2),
        (1.0, 10, 1),
        (2.0, 9, 3),
        prefill_slots=1,
    )
    assert placed(run) == [0.0, 9.5, 19.0]
    assert handed_over(run) == [9.5, 19.0, 28.5]
    assert first_tokens(run) == [10.5, 20.0, 29.5]
    assert finished(run) == [11.5, 20.0, 31.5]


def test_kv_waits_at_p_until_d_has_room() -> None:
    # D holds 4 blocks of 4 tokens; P computes 4 tokens in 4 s, which are 1 s on the wire in layers of 0.25 s.
    # A: P [0, 4), there at 4.25; D [4.25, 5.25) computes its other 4 tokens. Its decodes in [5.25, 8.25) need a third
    #    block, so one is free, and B's 12 tokens need three.
    # B: P [4, 8); D has room when A ends, at 8.25. All layers are ready: there at 9.25; D computes 8 tokens in 1 s.
    def run(kv_tokens: int) -> list[float | None]:
        made = simulation(
            cluster(
                prefill("p", LinearTimer(per_token=1.0)),
                decode("d", LinearTimer(base=1.0), kv_tokens=kv_tokens),
                bytes_per_s=64.0,
            ),
            4,
            (0.0, 8, 4),
            (1.0, 12, 1),
        )
        assert placed(made) == [0.0, 1.0]
        return handed_over(made) + finished(made)

    assert run(kv_tokens=16) == [4.25, 9.25, 8.25, 10.25]
    # With room for both B's last layer, ready at 8, is there at 8.25: in time for the step in which A had its last one.
    assert run(kv_tokens=32) == [4.25, 8.25, 8.25, 9.25]


def test_every_p_has_a_link_of_its_own() -> None:
    # Each P computes 4 tokens in 4 s and needs 8 s to send them, from the first layer on, at 1; they come 0.5 s later.
    # A at p0 and B at p1: sent in [1, 9), there at 9.5. C at p0 and D at p1: computed in [4, 8), sent in [9, 17).
    run = simulation(
        cluster(
            prefill("p0", LinearTimer(per_token=1.0)),
            prefill("p1", LinearTimer(per_token=1.0)),
            decode("d", LinearTimer(base=1.0)),
            bytes_per_s=8.0,
            latency_s=0.5,
        ),
        4,
        *[(0.0, 5, 1)] * 4,
    )
    assert [record.prefill for record in run.records] == ["p0", "p1", "p0", "p1"]
    assert handed_over(run) == [9.5, 9.5, 17.5, 17.5]
    assert finished(run) == [10.5, 10.5, 18.5, 18.5]
    assert [link_busy_s(run, name) for name in ("p0", "p1")] == [16.0, 16.0]
