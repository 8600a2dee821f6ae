import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.requests import MAX_TOKENS, TracedRequest, Workload, first, scaled
from services.simulator.workload.statistics import statistics


def workload(*requests: tuple[float, int, int]) -> Workload:
    return Workload("w", "a test", tuple(TracedRequest(*request) for request in requests))


FOUR = workload((0.0, 10, 1), (1.0, 20, 2), (1.5, 30, 3), (4.0, 41, 4))


@pytest.mark.parametrize("arrival_s", [-0.1, math.nan, math.inf])
def test_an_arrival_that_is_none(arrival_s):
    with pytest.raises(WorkloadError, match="arrival_s is"):
        TracedRequest(arrival_s, 1, 1)


@pytest.mark.parametrize("tokens", [0, -1, MAX_TOKENS + 1])
def test_a_length_that_is_none(tokens):
    with pytest.raises(WorkloadError, match=f"prompt_tokens is {tokens}"):
        TracedRequest(0.0, tokens, 1)
    with pytest.raises(WorkloadError, match=f"output_tokens is {tokens}"):
        TracedRequest(0.0, 1, tokens)


def test_a_workload_is_in_order_and_not_empty():
    with pytest.raises(WorkloadError, match="not in the order"):
        workload((1.0, 1, 1), (0.5, 1, 1))
    with pytest.raises(WorkloadError, match="at least one"):
        workload()


def test_the_first_requests():
    two = first(FOUR, 2)
    assert two.requests == FOUR.requests[:2]
    assert two.name == "w-first2"
    assert first(FOUR, 4) is FOUR


@pytest.mark.parametrize("requests", [0, -1, 5])
def test_more_than_there_are(requests):
    with pytest.raises(WorkloadError, match=f"first {requests} requests of 'w' .* it has 4"):
        first(FOUR, requests)


def test_scaled_rounds_up_and_keeps_arrivals():
    small = scaled(FOUR, 20)
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in small.requests] == [
        (0.0, 1, 1),
        (1.0, 1, 1),
        (1.5, 2, 1),
        (4.0, 3, 1),
    ]
    assert small.name == "w-div20"
    assert "divided by 20" in small.source
    assert scaled(FOUR, 1) is FOUR


@given(st.integers(1, MAX_TOKENS), st.integers(1, MAX_TOKENS))
def test_scaled_is_the_exact_ceiling(tokens, divisor):
    for request in ((0.0, tokens, 1), (0.0, 1, tokens)):
        small = scaled(workload(request), divisor).requests[0]
        length = max(small.prompt_tokens, small.output_tokens)
        assert min(small.prompt_tokens, small.output_tokens) == 1
        assert (length - 1) * divisor < tokens <= length * divisor


def test_scaled_drops_the_hashes_of_blocks():
    hashed = Workload("w", "", (TracedRequest(0.0, 1000, 1, (3, 4)),))
    assert scaled(hashed, 2).requests == (TracedRequest(0.0, 500, 1),)


@pytest.mark.parametrize("divisor", [0, -2])
def test_a_divisor_that_is_none(divisor):
    with pytest.raises(WorkloadError, match=f"divisor is {divisor}"):
        scaled(FOUR, divisor)


def test_statistics_of_a_hundred_lengths():
    found = statistics(workload(*((0.5 * n, n, 2 * n) for n in range(1, 102))))
    assert found.num_requests == 101
    assert (found.prompt.mean, found.prompt.p50, found.prompt.p90, found.prompt.p99) == (51, 51, 91, 100)
    assert (found.prompt.max, found.prompt.total) == (101, 101 * 51)
    assert (found.output.mean, found.output.p90, found.output.max) == (102, 182, 202)
    assert (found.span_s, found.requests_per_s, found.gap_cv) == (50, 2, 0)


def test_statistics_of_arrivals():
    found = statistics(FOUR)  # gaps 1, 0.5 and 2.5
    assert found.span_s == 4
    assert found.requests_per_s == 0.75
    assert found.gap_cv == pytest.approx(math.sqrt(((1 / 3) ** 2 + (5 / 6) ** 2 + (7 / 6) ** 2) / 3) / (4 / 3))


@pytest.mark.parametrize("lone", [workload((0.0, 1, 1)), workload((0.0, 1, 1), (0.0, 2, 2))])
def test_there_is_no_rate_without_time(lone):
    found = statistics(lone)
    assert (found.span_s, found.requests_per_s, found.gap_cv) == (0, None, None)
