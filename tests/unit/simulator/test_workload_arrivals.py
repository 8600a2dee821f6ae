import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.workload.arrivals import (
    all_at_once,
    as_recorded,
    fixed_interval,
    gamma,
    poisson,
    recorded_at,
)
from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.requests import TracedRequest, Workload
from services.simulator.workload.statistics import statistics

LENGTHS = Workload("lengths", "a test", tuple(TracedRequest(0.0, n, n + 1, (n,)) for n in range(1, 6)))
RECORDED = Workload(
    "times", "a test", tuple(TracedRequest(t, 1, 1) for t in (0.0, 1.0, 1.5, 4.0)), arrivals="as recorded"
)


def many(count: int) -> Workload:
    return Workload("many", "a test", (TracedRequest(0.0, 1, 1),) * count)


def times(workload: Workload) -> list[float]:
    return [request.arrival_s for request in workload.requests]


def test_all_at_once():
    assert times(all_at_once(RECORDED)) == [0, 0, 0, 0]
    assert all_at_once(RECORDED).arrivals == "all at once"


def test_fixed_interval():
    assert times(fixed_interval(LENGTHS, 0.25)) == [0, 0.25, 0.5, 0.75, 1]
    assert fixed_interval(LENGTHS, 0.25).arrivals == "one every 0.25 s"


def test_lengths_order_and_hashes_stay():
    for arrived in (poisson(LENGTHS, 2.0, 1), gamma(LENGTHS, 2.0, 3.0, 1), fixed_interval(LENGTHS, 9.0)):
        assert [(r.prompt_tokens, r.output_tokens, r.hash_ids) for r in arrived.requests] == [
            (n, n + 1, (n,)) for n in range(1, 6)
        ]
        assert (arrived.name, arrived.source) == (LENGTHS.name, LENGTHS.source)


def test_a_poisson_process():
    arrived = poisson(many(20_000), 5.5, 0)
    found = statistics(arrived)
    assert found.requests_per_s == pytest.approx(5.5, rel=0.03)
    assert found.gap_cv == pytest.approx(1, abs=0.05)
    gaps = [b - a for a, b in zip(times(arrived), times(arrived)[1:], strict=False)]
    assert sum(gap > 1 / 5.5 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.015)
    assert arrived.arrivals == "Poisson, 5.5 requests/s, seed 0"


@pytest.mark.parametrize("cv", [0.1, 0.5, 2.0, 4.0])
def test_gamma_gaps_have_their_rate_and_burstiness(cv):
    arrived = gamma(many(40_000), 3.0, cv, 11)
    found = statistics(arrived)
    assert found.requests_per_s == pytest.approx(3, rel=0.1)
    assert found.gap_cv == pytest.approx(cv, rel=0.1)
    assert arrived.arrivals == f"gamma, 3 requests/s, cv {cv:g}, seed 11"


@pytest.mark.parametrize("arrive", [lambda w, rate, s: poisson(w, rate, s), lambda w, rate, s: gamma(w, rate, 2.0, s)])
def test_the_seed_decides_and_the_rate_only_stretches(arrive):
    at_one = times(arrive(LENGTHS, 1.0, 3))
    assert at_one == times(arrive(LENGTHS, 1.0, 3))
    assert at_one != times(arrive(LENGTHS, 1.0, 4))
    assert times(arrive(LENGTHS, 4.0, 3)) == pytest.approx([time / 4 for time in at_one])


@given(st.integers(1, 30), st.floats(1e-6, 1e6), st.floats(0.01, 100), st.integers(0, 2**32))
def test_any_stream_starts_at_zero_and_is_in_order(count, rate, cv, seed):
    for arrived in (poisson(many(count), rate, seed), gamma(many(count), rate, cv, seed)):
        assert times(arrived)[0] == 0
        assert times(arrived) == sorted(times(arrived))
        assert len(arrived.requests) == count


def test_as_recorded():
    assert as_recorded(RECORDED) is RECORDED
    halved = as_recorded(RECORDED, 0.5)
    assert times(halved) == [0, 0.5, 0.75, 2]
    assert halved.arrivals == "as recorded, times multiplied by 0.5"


def test_recorded_at_a_rate():
    arrived = recorded_at(RECORDED, 3.0)
    assert times(arrived) == [0, 0.25, 0.375, 1]
    assert statistics(arrived).requests_per_s == 3
    assert statistics(arrived).gap_cv == statistics(RECORDED).gap_cv


def test_lengths_alone_have_no_recorded_times():
    with pytest.raises(WorkloadError, match="'lengths' has lengths and no times"):
        as_recorded(LENGTHS)
    with pytest.raises(WorkloadError, match="all requests of 'lengths' come at once"):
        recorded_at(LENGTHS, 1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_rates_and_intervals_that_are_none(value):
    with pytest.raises(WorkloadError, match="rate is"):
        poisson(LENGTHS, value, 0)
    with pytest.raises(WorkloadError, match="rate is"):
        gamma(LENGTHS, value, 1.0, 0)
    with pytest.raises(WorkloadError, match="rate is"):
        recorded_at(RECORDED, value)
    with pytest.raises(WorkloadError, match="cv is"):
        gamma(LENGTHS, 1.0, value, 0)
    with pytest.raises(WorkloadError, match="interval_s is"):
        fixed_interval(LENGTHS, value)
    with pytest.raises(WorkloadError, match="time_scale is"):
        as_recorded(RECORDED, value)


@pytest.mark.parametrize("cv", [1e-200, 0.009, 101.0, 1e200])
def test_burstiness_has_limits(cv):
    with pytest.raises(WorkloadError, match=r"cv is .* from 0\.01 to 100"):
        gamma(LENGTHS, 1.0, cv, 0)
