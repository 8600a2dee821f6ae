"""Rates of closed loops and what clients saw, on times made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bench.engine.errors import BenchError
from services.bench.load.stream import StreamTimes
from services.bench.serve.figures import Limits, latencies, steady_rate, tpot_s, within


def staggered(rate: float, requests: int, fill_s: float) -> list[float]:
    return [fill_s + number / rate for number in range(requests)]


@given(
    clients=st.integers(1, 16),
    turns=st.integers(3, 8),
    rate=st.floats(0.1, 1000.0),
    fill_s=st.floats(0.0, 100.0),
)
def test_filling_the_stages_does_not_count(clients: int, turns: int, rate: float, fill_s: float) -> None:
    assert steady_rate(staggered(rate, clients * turns, fill_s), clients) == pytest.approx(rate, rel=1e-6)


@given(clients=st.integers(1, 16), turns=st.integers(3, 8), wave_s=st.floats(0.01, 100.0))
def test_a_batch_that_ends_at_once_has_the_rate_of_its_waves(clients: int, turns: int, wave_s: float) -> None:
    ended_at = [wave_s * (number // clients + 1) for number in range(clients * turns)]
    assert steady_rate(ended_at, clients) == pytest.approx(clients / wave_s)


def test_the_end_when_clients_have_nothing_more_to_ask_does_not_count() -> None:
    busy = staggered(2.0, 9, 0.0)
    tail = [busy[-1] + 10.0 * number for number in range(1, 4)]
    assert steady_rate([*busy, *tail], 3) == pytest.approx(2.0)


def test_too_few_requests_are_no_rate() -> None:
    with pytest.raises(BenchError, match="of 4 requests of 2 clients 0 are left"):
        steady_rate([1.0, 2.0, 3.0, 4.0], 2)
    with pytest.raises(BenchError, match="give more"):
        steady_rate([1.0] * 9, 2)


def answer(*events_at: float, tokens: int | None = None) -> StreamTimes:
    return StreamTimes(10.0, list(events_at), "x", len(events_at) if tokens is None else tokens)


def test_latencies() -> None:
    quick, slow = answer(10.5, 10.6, 10.8), answer(11.5, 12.5, 13.5)
    found = latencies([quick, slow])
    assert found["ttft_mean_s"] == pytest.approx(1.0)
    assert found["tbt_mean_s"] == pytest.approx((0.1 + 0.2 + 1.0 + 1.0) / 4)
    assert found["tpot_p50_s"] == pytest.approx((0.15 + 1.0) / 2)
    assert found["tbt_p99_s"] == pytest.approx(1.0)


def test_tokens_that_had_no_text_of_their_own_count_for_tpot() -> None:
    assert tpot_s(answer(10.5, 10.7, 11.5, tokens=5)) == pytest.approx(0.25)
    assert tpot_s(answer(10.5)) == 0.0


def test_an_answer_must_keep_both_limits() -> None:
    limits = Limits(ttft_s=1.0, tpot_s=0.5)
    in_time, late, slow = answer(11.0, 11.5), answer(11.1, 11.2), answer(10.1, 10.7)
    assert within([in_time, late, slow, in_time], limits) == 0.5
