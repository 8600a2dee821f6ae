"""What is told of plans: words, rows, the table and the picture."""

import io
from pathlib import Path

import msgspec
import pytest
from planning_case import TP2, aggregated, group, pairs, plan, pool, request, workload
from rich.console import Console

from common.messages.control import Role
from services.planner.errors import PlannerError
from services.planner.plan import Serving
from services.planner.report.pareto_plot import front_figure, plot_front
from services.planner.report.plan_rows import front_rows, group_rows, plan_row, summary_of
from services.planner.report.plan_table import plans_table
from services.planner.report.plan_words import in_words, limits_in_words, price_of, price_per_million, wanted_in_words
from services.planner.request import Limits, Objective
from services.planner.search.pareto import SCALES, Limit, front
from services.planner.trials.evaluate import Effort, Evaluation, evaluate
from services.simulator.runs.system import serve

RANKS = plan(Serving.DISAGGREGATED, group("l4", Role.DECODE, 8), group("a10", Role.PREFILL, 2, TP2), rate_rps=7.0)
LIMITS = Limits(ttft_p99_s=1.0, tpot_p99_s=0.05)


def shown(*rows) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(plans_table("plans", rows))
    return out.getvalue()


def test_a_plan_in_words_names_p_first():
    assert in_words(RANKS) == "2 x a10 TP2 prefill + 8 x l4 decode"
    assert in_words(aggregated(3)) == "3 x a10"


def test_what_is_wanted_in_words():
    assert limits_in_words(Limits()) == "no limits"
    assert limits_in_words(LIMITS) == "TTFT P99 at most 1 s and TPOT P99 at most 50 ms"
    assert wanted_in_words(request(objective=Objective.PRICE, rate_rps=4.0, limits=LIMITS, budget=9.0)) == (
        "the least price at 4 requests/s within TTFT P99 at most 1 s and TPOT P99 at most 50 ms, for at most 9 per hour"
    )
    assert wanted_in_words(request(rate_rps=4.0)) == "the most throughput, looked at at 4 requests/s"


def test_a_price_is_known_only_where_every_used_device_has_one():
    assert price_of(RANKS, request()) == (2 * 2 + 8) * 2.0
    unknown = request(pool("a10"), pool("l4", device_price=None))
    assert price_of(RANKS, unknown) is None
    assert price_of(aggregated(3), unknown) == 6.0
    # 36 per hour, 2 requests/s of 500 tokens: 3.6 million tokens per hour.
    assert price_per_million(36.0, 2.0, 500) == pytest.approx(10.0)
    assert price_per_million(None, 2.0, 500) is None
    assert price_per_million(36.0, 0.0, 500) is None


def test_a_row_without_simulation_has_the_closed_form_only():
    row = plan_row(1, Evaluation(RANKS), request())
    assert row["closed_form_rps"] == 7.0
    assert row["simulated_rps"] is row["ttft_p99_s"] is row["simulated_requests"] is None
    assert (row["price_per_h"], row["devices"], row["instances"], row["needs_ranks"]) == (24.0, 12, 10, True)
    assert row["price_per_million_output_tokens"] == pytest.approx(24 / (7 * 10 * 3600) * 1e6)
    assert (row["where"], row["repeats"], row["costs"]) == ("simulated", 1, "spec")


def test_a_price_for_a_rate_is_spread_over_that_rate():
    wanted = request(objective=Objective.PRICE, rate_rps=2.0)
    row = plan_row(1, Evaluation(RANKS), wanted)
    assert row["price_per_million_output_tokens"] == pytest.approx(24 / (2 * 10 * 3600) * 1e6)


def test_every_row_is_flat_and_tells_what_the_table_tells():
    wanted = request(objective=Objective.GOODPUT, limits=LIMITS)
    found = evaluate(pairs(), wanted, Effort(most_requests=60, probes=3), serve)
    row = plan_row(1, found, wanted)
    rows = [row, *group_rows(1, found, wanted)]
    assert all(value is None or isinstance(value, str | int | float) for each in rows for value in each.values())
    assert [(each["role"], each["count"], each["price_per_h"]) for each in rows[1:]] == [
        ("prefill", 1, 2.0),
        ("decode", 2, 4.0),
    ]
    text = shown(row, plan_row(2, Evaluation(RANKS), wanted))
    first, second = (line for line in text.splitlines() if line.strip()[:2] in ("1 ", "2 "))
    assert f" {row['ttft_p99_s']:.2f} s " in first
    assert f" {1e3 * row['tpot_p99_s']:.1f} ms " in first
    assert "few requests" in first
    assert "2 x a10 TP2 prefill + 8 x l4 decode" in second
    assert "needs ranks" in second


def test_columns_without_a_figure_are_left_out():
    text = shown(plan_row(1, Evaluation(aggregated()), request(pool("a10", device_price=None))))
    assert "price" not in text
    assert "sim." not in text
    assert "marks" not in text


def test_the_summary_compares_the_first_with_the_others():
    plans = [Evaluation(aggregated(rate_rps=rate)) for rate in (8.0, 4.0)]
    assert summary_of(plans, request()) == {"rate_1_over_2": 2.0}
    dear = [Evaluation(aggregated(2)), Evaluation(aggregated(4))]
    assert summary_of(dear, request(objective=Objective.PRICE)) == {"price_1_over_2": 0.5}


# ---------------------------------------------------------------- the front


def by_limits(wanted):
    """Twice the TTFT, twice the rate; nothing below half a second."""
    limits = wanted.limits
    if limits.ttft_p99_s < 0.5:
        return None
    return aggregated(rate_rps=10 * limits.ttft_p99_s)


def test_the_front_scales_one_limit_at_a_time():
    points = list(front(request(limits=LIMITS), by_limits))
    ttft, tpot = ([point for point in points if point.limit is limit] for limit in Limit)
    assert [point.limit_s for point in ttft] == list(SCALES)
    assert [point.limits.tpot_p99_s for point in ttft] == [0.05] * len(SCALES)
    assert [point.plan is None for point in ttft] == [scale < 0.5 for scale in SCALES]
    assert [point.limit_s for point in tpot] == pytest.approx([0.05 * scale for scale in SCALES])
    assert [row["closed_form_rps"] for row in front_rows(tpot, request())] == [10.0] * len(SCALES)


def test_the_front_of_throughput_is_that_of_goodput():
    objectives = []
    list(front(request(limits=Limits(ttft_p99_s=1.0)), lambda wanted: objectives.append(wanted.objective)))
    assert objectives == [Objective.GOODPUT] * len(SCALES)


def test_the_picture_has_the_line_and_the_simulated_plans():
    pytest.importorskip("matplotlib")
    wanted = request(objective=Objective.GOODPUT, limits=LIMITS, workload=workload(20))
    found = evaluate(aggregated(), wanted, Effort(most_requests=40, probes=2), serve)
    points = list(front(wanted, by_limits))
    ttft, tpot = front_figure(points, [found, Evaluation(RANKS)], wanted).axes
    line, dot = (next(each for each in ttft.lines if word in each.get_label()) for word in ("best plan", "1: aggr"))
    assert list(line.get_xdata()) == [scale for scale in SCALES if scale >= 0.5]
    assert list(line.get_ydata()) == [10 * scale for scale in SCALES if scale >= 0.5]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (found.shown.ttft.p99, found.shown_rps)
    assert not any("2:" in each.get_label() for each in tpot.lines)


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path):
    pytest.importorskip("matplotlib")
    wanted = request(limits=msgspec.structs.replace(LIMITS, tpot_p99_s=None))
    points = list(front(wanted, by_limits))
    plot_front(points, [], wanted, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PlannerError, match="--plot"):
        plot_front(points, [], wanted, tmp_path)
