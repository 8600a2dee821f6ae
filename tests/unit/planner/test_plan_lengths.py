"""Lengths: their statistics, and those that are drawn from a few figures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.closed_forms.lengths import lengths_of
from services.planner.files.lognormal import WIDEST, length_problems, lognormal_workload
from services.planner.files.plan_keys import LengthKeys
from services.simulator.workload.statistics import statistics
from services.simulator.workload.synthetic import synthetic
from tests.unit.planner.closed_form_case import workload


def test_requests_alike_hold_their_prompt_and_half_their_output():
    found = lengths_of(workload((1000, 200), (1000, 200)))
    assert (found.context, found.longest, found.longest_prompt, found.total) == (1100, 1200, 1000, 1200)
    assert found.held_variation == 0
    assert found.prompts.second_moment == 1e6


def test_a_long_output_counts_for_as_many_steps_as_it_has():
    # 100 steps at 10 + 50 tokens, 300 steps at 30 + 150: (100·60 + 300·180) / 400.
    assert lengths_of(workload((10, 100), (30, 300))).context == 150


def test_p99_is_the_least_value_that_99_of_100_have_at_most():
    prompts = lengths_of(workload(*((length, 1) for length in range(1, 201)))).prompts
    assert prompts.p99(prompts.tokens) == 198
    assert prompts.p99(-prompts.tokens) == -3


def test_many_lengths_are_grouped_without_changing_their_mean():
    trace = synthetic(20_000, 1)
    exact = np.array([request.prompt_tokens for request in trace.requests])
    prompts = lengths_of(trace).prompts
    assert len(prompts.tokens) <= 500
    assert prompts.mean == pytest.approx(exact.mean())
    assert prompts.shares.sum() == pytest.approx(1)
    assert prompts.second_moment == pytest.approx((exact**2).mean(), rel=0.01)
    assert prompts.p99(prompts.tokens) == pytest.approx(np.quantile(exact, 0.99), rel=0.01)
    assert (np.diff(prompts.tokens) > 0).all()


def test_a_lognormal_has_the_mean_and_the_percentile_that_were_given():
    drawn = lognormal_workload(LengthKeys(1000, p99=4000), LengthKeys(200, p50=150), 4000, 0)
    found = statistics(drawn)
    assert found.prompt.mean == pytest.approx(1000, rel=1e-3)
    assert found.prompt.p99 == pytest.approx(4000, rel=0.03)
    assert found.output.mean == pytest.approx(200, rel=5e-3)
    assert found.output.p50 == pytest.approx(150, rel=0.01)


def test_of_two_percentiles_both_are_nearly_met():
    found = statistics(lognormal_workload(LengthKeys(1000, p50=700, p99=4500), LengthKeys(10), 4000, 0))
    assert found.prompt.mean == pytest.approx(1000, rel=1e-3)
    assert found.prompt.p50 == pytest.approx(700, rel=0.1)
    assert found.prompt.p99 == pytest.approx(4500, rel=0.1)


def test_without_percentiles_all_are_alike_and_a_seed_only_shuffles():
    one = lognormal_workload(LengthKeys(100), LengthKeys(20, p99=60), 50, 1)
    other = lognormal_workload(LengthKeys(100), LengthKeys(20, p99=60), 50, 2)
    assert {request.prompt_tokens for request in one.requests} == {100}
    assert one != other
    assert one == lognormal_workload(LengthKeys(100), LengthKeys(20, p99=60), 50, 1)
    sorted_outputs = [sorted(request.output_tokens for request in each.requests) for each in (one, other)]
    assert sorted_outputs[0] == sorted_outputs[1]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (LengthKeys(100, p50=120), "p50 is 120, above the mean of 100"),
        (LengthKeys(100, p99=90), "p99 is 90 with a mean of 100"),
        (LengthKeys(100, p99=1600), f"from 100 to {100 * WIDEST:.0f}"),
        (LengthKeys(100, p50=99, p99=1400), "leave out p50 or p99"),
    ],
)
def test_figures_that_no_lognormal_has_are_named(keys, words):
    assert any(words in problem for problem in length_problems("workload.prompt", keys))


@given(st.floats(20, 5000), st.floats(1.01, 8), st.integers(0, 5))
def test_any_lognormal_keeps_its_mean(mean, ratio, seed):
    keys = LengthKeys(mean, p99=ratio * mean)
    assert not list(length_problems("workload.prompt", keys))
    prompts = [request.prompt_tokens for request in lognormal_workload(keys, LengthKeys(5), 500, seed).requests]
    assert np.mean(prompts) == pytest.approx(mean, rel=0.02)
