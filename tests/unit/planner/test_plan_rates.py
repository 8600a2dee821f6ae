"""Closed forms of one instance, against numbers worked out by hand."""

import numpy as np
import pytest

from services.planner.closed_forms.curves import decode_curve, whole_curve
from services.planner.closed_forms.latencies import (
    decode_floor_s,
    handing_seconds,
    prefill_floor_s,
    prefill_utilisation,
    whole_floor_s,
    whole_utilisation,
)
from services.planner.closed_forms.lengths import lengths_of
from services.planner.closed_forms.rates import Factor, prefill_seconds, slots, xiong_tokens_per_s
from services.simulator.links import LinkSpec
from tests.unit.planner.closed_form_case import TOKEN_BYTES, alike, instance, workload


def test_the_room_for_sequences_is_bounded_by_kv_or_by_max_batch():
    # 22,000 tokens, 1000 + 200/2 each; a last block of 16 is half empty.
    assert slots(instance()) == (20, Factor.KV_ROOM)
    assert slots(instance(block_size=16)) == (19, Factor.KV_ROOM)
    assert slots(instance(max_batch=16)) == (16, Factor.MAX_BATCH)
    assert slots(instance(kv_tokens=1201)) == (1, Factor.KV_ROOM)


def test_xiongs_throughput():
    # 20 prompts of 0.11 s, then 200 steps: 20·1200 / (2.2 + 200·0.022 + 2e-6·20·(200·1000 + 200·201/2)).
    assert xiong_tokens_per_s(instance()) == pytest.approx(24_000 / (2.2 + 4.4 + 8.804))


def test_a_prompt_in_one_step_in_chunks_and_over_a_slow_link():
    assert prefill_seconds(instance()) == (pytest.approx(0.11), Factor.COMPUTE)
    # 400 alone, 400 after 400 and 200 after 800 tokens.
    chunked = 0.05 + (0.02 + 0.04 + 400e-6) + (0.02 + 0.02 + 800e-6)
    assert prefill_seconds(instance(prefill_chunk=400)) == (pytest.approx(chunked), Factor.COMPUTE)
    assert prefill_seconds(instance(alike(800), prefill_chunk=400))[0] == pytest.approx(0.05 + 0.0604)
    slow = LinkSpec(1000 * TOKEN_BYTES / 0.5)
    assert prefill_seconds(instance(link=slow)) == (pytest.approx(0.5), Factor.LINK)


def test_the_mean_prompt_is_a_mean_over_all_lengths():
    # Chunks of 400: 100 tokens in one, 700 in two.
    mixed = instance(lengths_of(workload((100, 10), (700, 10))), prefill_chunk=400)
    assert prefill_seconds(mixed)[0] == pytest.approx((0.02 + (0.05 + 0.02 + 0.03 + 400e-6)) / 2)


def test_kv_leaves_while_the_next_layer_is_computed():
    slow, fast = (LinkSpec(1000 * TOKEN_BYTES / seconds, 0.001) for seconds in (0.32, 0.032))
    assert handing_seconds(instance(link=slow))[0] == pytest.approx(0.11 / 32 + 0.32 + 0.001)
    assert handing_seconds(instance(link=fast))[0] == pytest.approx(0.11 + 0.032 / 32 + 0.001)


def test_decodes_alone():
    curve = decode_curve(instance())
    # 0.02 + 20·1e-4 + 2e-6·20·1100 for 20 tokens of 200.
    assert curve.least_seconds == pytest.approx(200 * 0.066 / 20)
    assert curve.most == 20
    assert curve.tpot_p99_s[0] == pytest.approx(0.0223)
    kept = curve.within(0.042)
    assert kept is not None
    assert (kept.most, kept.limited_by) == (9, Factor.TPOT)
    assert kept.least_seconds == pytest.approx(200 * (0.02 + 9 * 0.0023) / 9)
    assert curve.within(0.0222) is None
    assert curve.within(1.0) is curve


def test_the_link_bounds_a_decode_instance_too():
    curve = decode_curve(instance(link=LinkSpec(1000 * TOKEN_BYTES / 2.0)))
    assert (curve.least_seconds, curve.limited_by) == (pytest.approx(2.0), Factor.LINK)


def test_whole_requests_have_three_steps_with_chunks_and_seven_without():
    # 20 decodes leave chunks of 492 after 0, 492 and 984 tokens, in 3 of the 200/20 steps.
    curve = whole_curve(instance())
    chunks = 3 * (0.02 + 20 * 1e-4 + 2e-6 * 20 * 1100) + 1000 * 1e-4 + (492 + 984) * 1e-6
    assert curve.seconds[-1] == pytest.approx(chunks + 7 * 0.066)
    assert curve.most == 20


def test_a_filled_budget_has_decodes_and_chunks_in_proportion():
    # n decodes and 5·n prompt tokens for each fill 120 at n = 20.
    curve = whole_curve(instance(budget=120, max_batch=100, kv_tokens=220_000))
    assert (curve.most, curve.limited_by, curve.crowd) == (20, Factor.BUDGET, 25)
    # Each of the ten steps of a request is full: 100 tokens of its prompt after 0, 100, … 900.
    chunks = 10 * (0.02 + 20 * 1e-4 + 2e-6 * 20 * 1100) + 0.1 + 4500e-6
    assert curve.seconds[-1] == pytest.approx(chunks)


def test_prompts_much_longer_than_answers_leave_less_than_one_decode_at_a_time():
    curve = whole_curve(instance(alike(8000, 10), kv_tokens=100_000))
    assert list(curve.batches) == [pytest.approx(512 * 10 / 8010)]
    # 8,010 tokens in full steps of 512: prompt and decodes, the contexts of 16 chunks, and of 10 steps that decode.
    contexts = 511.36 * 16 * 15 / 2 * 1e-6 + 10 * 8005 * 2e-6
    assert curve.least_seconds == pytest.approx(8010 / 512 * 0.02 + 0.801 + contexts, rel=1e-3)
    assert curve.most == 1


def test_whole_is_never_less_than_apart():
    for prompt, output in ((1, 1000), (50, 500), (1000, 200), (4000, 20)):
        made = instance(alike(prompt, output), kv_tokens=60_000)
        assert whole_curve(made).least_seconds >= decode_curve(made).least_seconds


def test_the_batch_at_a_rate_is_that_whose_own_rate_it_is():
    curve = decode_curve(instance())
    for batch in (1, 7, 20):
        assert curve.batch_at(1 / curve.seconds[batch - 1]) == pytest.approx(batch)
    assert curve.batch_at(0.5 / curve.seconds[0]) == pytest.approx(0.5)


def test_floors_are_of_an_idle_instance():
    made = instance(lengths_of(workload(*((100, 200),) * 98, (1000, 200), (2000, 200))))
    assert prefill_floor_s(made) == pytest.approx(0.11)
    assert prefill_floor_s(made, 0.5) == pytest.approx(0.06)
    assert decode_floor_s(instance()) == pytest.approx(0.0223)
    # 1000 tokens as 512 and 488 after 512.
    assert whole_floor_s(made) == pytest.approx(2 * 0.02 + 0.1 + 512e-6)


def test_a_prefill_instance_is_used_as_much_as_m_d_1_allows():
    # Service is always 0.11 s: P(W > 0.5 - 0.11) = ρ·exp(-0.39·2·(1 - ρ)/0.11) = 0.01.
    found = prefill_utilisation(instance(), 0.5)
    assert found is not None
    assert found * np.exp(-0.39 * 2 * (1 - found) / 0.11) == pytest.approx(0.01, rel=1e-3)
    assert prefill_utilisation(instance(), 0.109) is None


def test_less_time_for_the_first_token_means_less_use():
    made = instance()
    curve = whole_curve(made)
    found = [whole_utilisation(made, curve, limit) for limit in (0.2, 0.5, 1.0, 2.0, 8.0, None)]
    assert all(share is not None for share in found)
    assert found == sorted(found)
    assert found[0] < 0.5 < found[3]
    assert whole_utilisation(made, curve, 0.12) is None
