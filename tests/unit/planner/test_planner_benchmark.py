"""The benchmark's own arithmetic, and its tables on few requests."""

from pathlib import Path
from typing import Any

import pytest

from common.clock import ManualClock
from common.messages.control import Role
from services.planner.benchmark.agreement import _random_request, table_rows
from services.planner.benchmark.cases import Kind, machines, plan_keys
from services.planner.benchmark.desk import Desk, Row
from services.planner.benchmark.mixed import mixed_rows
from services.planner.benchmark.rates import rate_rows
from services.planner.benchmark.ratios import ratio_rows
from services.planner.benchmark.roles import role_rows
from services.planner.benchmark.run import PlannerBench, planner_rows, planner_summary
from services.planner.benchmark.steady import requests_for_steady
from services.planner.plan import Serving
from services.planner.planning import planned
from services.planner.request import Objective
from services.planner.trials.deployment import deployed
from services.planner.trials.evaluate import Effort
from services.simulator.cluster.cluster import Cluster
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.workload.requests import TracedRequest, Workload


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Simulations of so few requests that their figures mean nothing."""
    return Desk(
        folder=tmp_path,
        catalogue=load_catalogue(),
        effort=Effort(most_requests=12, probes=1),
        on_step=lambda _: None,
    )


def cluster_of(desk: Desk, shape: str) -> tuple[Workload, Cluster]:
    request = desk.request(
        plan_keys("LLaMA3-8B", [machines(Kind("A100 80GB SXM", 1.0), 1, 2)], Objective.THROUGHPUT, shape=shape)
    )
    plan = next(plan for plan in planned(request).plans if plan.instances(Role.DECODE) == 2)
    return request.workload, deployed(plan, request).cluster


def test_heavier_tails_need_more_requests(desk: Desk) -> None:
    workload, cluster = cluster_of(desk, "azure_conv_first1000")
    alike = Workload("alike", "a test", tuple(TracedRequest(0.0, 1000, 250) for _ in range(100)))
    # Two instances of 64 places, three times over.
    assert requests_for_steady(alike, cluster) == 3 * 128
    assert requests_for_steady(workload, cluster) > 2 * requests_for_steady(alike, cluster)


def by_kind(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def test_swapped_devices_swap_the_roles(desk: Desk) -> None:
    one, other = role_rows(desk, quick=True)
    assert (one["left"], one["left_roles"], one["right_roles"]) == ("A800 80GB SXM", "2 prefill", "2 decode")
    assert (other["left"], other["left_roles"], other["right_roles"]) == ("H20", "2 decode", "2 prefill")
    assert one["prefiller"] == other["prefiller"] == "A800 80GB SXM"
    assert one["left_prefills_closed_form_rps"] == other["right_prefills_closed_form_rps"]


def test_neighbours_of_the_planned_ratio_are_not_better_by_closed_form(desk: Desk) -> None:
    rows = list(ratio_rows(desk, quick=True))
    assert [row["prefill_instances"] for row in rows] == list(range(1, 8))
    (planned,) = [row for row in rows if row["is_planned"]]
    assert planned["closed_form_rps"] == max(float(row["closed_form_rps"] or 0) for row in rows)


def test_a_mixed_pool_has_both_kinds_and_keeps_the_budget(desk: Desk) -> None:
    (row,) = mixed_rows(desk, quick=True)
    assert "a800-80gb-sxm" in str(row["mixed_plan"])
    assert "h20" in str(row["mixed_plan"])
    for name in ("first", "second", "mixed"):
        assert float(row[f"{name}_price_per_h"] or 0) <= float(row["budget_per_h"] or 0)
    assert row["mixed_over_best_alone_closed_form"] == pytest.approx(
        float(row["mixed_closed_form_rps"] or 0)
        / max(float(row["first_closed_form_rps"] or 0), float(row["second_closed_form_rps"] or 0))
    )


def test_dearer_rates_cost_no_less(desk: Desk) -> None:
    rows = list(rate_rows(desk, quick=True))
    rates = by_kind(rows, "rate")
    assert all(float(row["closed_form_rps"] or 0) >= float(row["rate_rps"] or 0) for row in rates)
    prices = [float(row["price_per_h"] or 0) for row in rates]
    assert prices == sorted(prices)
    assert all(
        row["over_rps"] == pytest.approx(1.5 * float(row["planned_rps"] or 0)) for row in by_kind(rows, "tightness")
    )


def test_the_table_goes_from_the_best_plan_to_the_worst(desk: Desk) -> None:
    rows = list(table_rows(desk, quick=True))
    plans, (agreement,) = by_kind(rows, "table_plan"), by_kind(rows, "table")
    closed = [float(row["closed_form_rps"] or 0) for row in plans]
    assert closed == sorted(closed, reverse=True)
    assert (plans[0]["rank"], plans[-1]["rank"]) == (1, agreement["plans"])
    assert agreement["compared_plans"] == len(plans)


def test_random_clusters_are_the_same_every_time(desk: Desk) -> None:
    clusters = [_random_request(desk, seed)[1] for seed in (0, 1, 2, 0)]
    assert clusters[0] == clusters[3]
    assert len(set(clusters)) == 3


def summary_rows(**columns: Any) -> list[Row]:
    return [{"kind": "random_cluster", "where": "simulated", "repeats": 1, **columns}]


def test_the_summary_leaves_out_what_was_not_measured() -> None:
    assert planner_summary([]) == {}
    row = summary_rows(
        mean_error=0.1,
        same_best=True,
        as_good_as_best=True,
        best_over_chosen=1.0,
        aggregated_same_best=False,
        aggregated_as_good_as_best=True,
    )
    found = planner_summary([*row, *row])
    assert found["same_best_share"] == 1.0
    assert found["same_best_aggregated_share"] == 0.0
    assert found["closed_form_error_of_random_clusters"] == pytest.approx(0.1)
    assert "longest_search_s" not in found


@pytest.mark.slow
def test_everything_at_once(tmp_path: Path) -> None:
    bench = PlannerBench(
        folder=tmp_path, tables=None, aiconfigurator=None, clock=ManualClock(), on_step=lambda _: None, quick=True
    )
    rows = list(planner_rows(bench))
    assert {row["kind"] for row in rows} == {
        "search", "role", "ratio", "table", "table_plan", "random_cluster", "rate", "tightness", "mixed"
    }  # fmt: skip
    assert all(row["where"] == ("real" if row["kind"] == "search" else "simulated") for row in rows)
    assert {plan["serving"] for plan in by_kind(rows, "rate")} <= {serving.value for serving in Serving}
