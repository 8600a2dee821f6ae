"""Rows and summary of the gateway's benchmark, and the reading of loop lag."""

from typing import Any

import pytest

from common.loop_lag import LoopLagFigures
from common.messages.control import Load
from common.metrics import Metrics
from services.bench.gateway.cases import Case, cases
from services.bench.gateway.questions import STREAM, WHOLE, WHOLE_IN_STEPS
from services.bench.gateway.rows import case_rows, loop_lag_rows, skipped_row, summary
from services.bench.gateway.sample import Sample, sample_of
from services.bench.gateway.system import Skipped, System
from services.bench.loop_lag import loop_lag_of
from services.bench.report import Row

SYSTEMS = [System(name, "1", "", "http://x", 1) for name in ("pdmesh", "aiohttp", "vllm-router")]
MINE = [Sample(100, 50.0, 1.5, 4.0, 300.0), Sample(120, 60.0, 1.0, 3.0, 200.0), Sample(80, 40.0, 3.0, 5.0, 400.0)]
RAW = [Sample(400, 200.0, 0.5, 1.0, 90.0), Sample(400, 200.0, 0.25, 1.0, 90.0), Sample(300, 150.0, 1.5, 2.0, 90.0)]
SAMPLES = {"pdmesh": MINE, "aiohttp": RAW, "vllm-router": RAW}


def rows_of(case: Case) -> dict[str, dict[str, Any]]:
    return {str(row["system"]): dict(row) for row in case_rows(case, "wrk", SYSTEMS, SAMPLES)}


def test_what_is_added_is_the_median_of_the_rounds_differences() -> None:
    rows = rows_of(Case(WHOLE, 1))
    ours = rows["pdmesh"]
    # 1.0, 0.75 and 1.5: not the difference of the medians.
    assert (ours["p50_ms"], ours["added_p50_ms"]) == (1.5, 1.0)
    assert (ours["added_p50_ms_min"], ours["added_p50_ms_max"]) == (0.75, 1.5)
    assert ours["added_p99_ms"] == 3.0
    assert (ours["requests_per_s"], ours["repeats"], ours["client"]) == (50.0, 3, "wrk")
    assert "streams_per_s" not in ours
    assert "added_p50_ms" not in rows["aiohttp"]


def test_a_stream_counts_its_events() -> None:
    ours = rows_of(Case(STREAM, 16))["pdmesh"]
    assert (ours["streams_per_s"], ours["events_per_s"], ours["events_per_s_max"]) == (50.0, 1600.0, 1920.0)
    assert "requests_per_s" not in ours


def test_the_summary_has_what_goals_are_set_for() -> None:
    rows: list[Row] = [row for case in cases() for row in case_rows(case, "wrk", SYSTEMS, SAMPLES)]
    found = summary([*rows, skipped_row(Skipped("smg", "not here")), {"kind": "gateway", "phase": "loop_lag"}])
    assert found == {
        "added_p50_ms": 1.0,
        "requests_per_s_c16": 50.0,
        "streams_per_s_c16": 50.0,
        "aiohttp_requests_per_s_c16": 200.0,
        "aiohttp_streams_per_s_c16": 200.0,
        "vllm_router_added_p50_ms": 0.0,
        "vllm_router_requests_per_s_c16": 200.0,
        "vllm_router_streams_per_s_c16": 200.0,
    }


def test_whole_answers_in_steps_are_not_taken_for_those_at_once() -> None:
    assert summary(case_rows(Case(WHOLE_IN_STEPS, 16), "wrk", SYSTEMS, SAMPLES)) == {}


def test_a_sample_of_latencies() -> None:
    sample = sample_of([number / 1000 for number in range(1, 102)], 2.0)
    assert (sample.answers, sample.answers_per_s) == (101, 50.5)
    assert (sample.p50_ms, sample.p99_ms) == pytest.approx((51.0, 100.0))


def test_the_lag_of_every_process_is_read_from_the_metrics() -> None:
    metrics = Metrics()
    metrics.loop_lag_p99_s.set(0.002)
    metrics.loop_lag_max_s.set(0.5)
    metrics.load_reported("d0", Load(lag_p99_s=0.25, lag_max_s=1.5))
    lags = loop_lag_of(metrics.render().decode())
    assert lags == {"gateway": LoopLagFigures(0.002, 0.5), "d0": LoopLagFigures(0.25, 1.5)}
    assert loop_lag_of("") == {}


def test_rows_of_lag() -> None:
    rounds = [
        {"gateway": LoopLagFigures(0.001, 0.01), "d0": LoopLagFigures(0.0, 0.0)},
        {"gateway": LoopLagFigures(0.003, 0.02)},
    ]
    (row,) = loop_lag_rows(Case(STREAM, 16), "asyncio", rounds)
    assert (row["process"], row["phase"], row["repeats"]) == ("gateway", "loop_lag", 2)
    assert (row["lag_p99_ms"], row["lag_p99_ms_max"], row["lag_max_ms"]) == pytest.approx((2.0, 3.0, 15.0))
