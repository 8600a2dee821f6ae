"""How far closed forms and simulations agree: on rates, on order, and on which plan is the best."""

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from services.planner.benchmark.cases import CHAT, DECODE_HEAVY, PREFILL_HEAVY, Kind, machines, plan_keys
from services.planner.benchmark.desk import Desk, Row, plan_columns
from services.planner.files.plan_keys import MachineKeys
from services.planner.plan import Plan, Serving
from services.planner.planning import planned
from services.planner.report.plan_words import in_words
from services.planner.request import Objective, PlanRequest

CLUSTERS = 20
TABLE_PLANS = 30
"""Of the listed cluster, spread evenly over its ranks."""
_BEST_PLANS, _AGGREGATED_PLANS = 6, 4
"""Of each random cluster, the first by closed form."""
_NEAR = 0.02
"""Plans whose simulated rates are closer than this are equally good."""
_MODEL = "LLaMA3-8B"
_DEVICES = (
    "A100 80GB SXM",
    "A100 40GB SXM",
    "H100 SXM",
    "H20",
    "L40S",
    "A30",
    "A10",
    "L4",
    "MI300X",
    "MI210",
    "Gaudi2",
)
_SHAPES = (CHAT, PREFILL_HEAVY, DECODE_HEAVY)


def table_rows(desk: Desk, *, quick: bool) -> Iterator[Row]:
    """A row of kind "table_plan" for plans of one cluster from the best to the worst, and one with their agreement."""
    of = [machines(Kind("A100 40GB SXM", 3.67), 2, 2), machines(Kind("L4", 0.7), 2, 2)]
    words = _in_words(of)
    request = desk.request(plan_keys(_MODEL, of, Objective.THROUGHPUT))
    table = _by_rate(planned(request).plans)
    chosen = _spread(table, 8 if quick else TABLE_PLANS)
    origin: Row = {"where": "simulated", "repeats": 1, "cluster": words}
    tried = []
    for rank, plan in chosen:
        desk.on_step(f"table: plan {rank} of {len(table)}")
        tried.append((plan, desk.rate_of(plan, request)))
        yield {"kind": "table_plan", **origin, "rank": rank, **plan_columns(plan), "simulated_rps": tried[-1][1]}
    yield {
        "kind": "table",
        **origin,
        "plans": len(table),
        **_agreement(tried),
    }


def random_rows(desk: Desk, *, quick: bool) -> Iterator[Row]:
    """A row for each random cluster: its best plans by closed form, simulated, and whether the first stays first; the
    same of its aggregated plans alone, which differ in strategies and counts only.
    """
    for seed in range(3 if quick else CLUSTERS):
        desk.on_step(f"random cluster {seed}")
        request, words = _random_request(desk, seed)
        found = planned(request)
        aggregated = [plan for plan in found.plans if plan.serving is Serving.AGGREGATED]
        of_all, of_aggregated = found.top(_BEST_PLANS), _by_rate(aggregated)[:_AGGREGATED_PLANS]
        rates = {plan: desk.rate_of(plan, request) for plan in {*of_all, *of_aggregated}}
        tried = [(plan, rates[plan]) for plan in of_all]
        yield {
            "kind": "random_cluster",
            "where": "simulated",
            "repeats": 1,
            "seed": seed,
            "cluster": words,
            "load": request.workload.name,
            **_best_columns(tried),
            **_agreement(tried),
            **{
                f"aggregated_{column}": value
                for column, value in _best_columns([(plan, rates[plan]) for plan in of_aggregated]).items()
            },
        }


def _best_columns(tried: Sequence[tuple[Plan, float]]) -> Row:
    """Whether the first of these plans, the best by closed form, is the best when simulated."""
    (first, first_rps), (best, best_rps) = tried[0], max(tried, key=lambda each: each[1])
    return {
        "closed_form_best": in_words(first),
        "closed_form_serving": first.serving.value,
        "simulated_best": in_words(best),
        "simulated_serving": best.serving.value,
        "same_best": best == first,
        "as_good_as_best": first_rps >= (1 - _NEAR) * best_rps,
        "best_over_chosen": best_rps / first_rps,
    }


def _random_request(desk: Desk, seed: int) -> tuple[PlanRequest, str]:
    """Two or three kinds of devices, one or two machines of each, one or two devices in a machine."""
    random = Random(seed)
    names = random.sample(_DEVICES, random.choice((2, 2, 3)))
    of = [machines(Kind(name, 1.0), random.choice((1, 2)), random.choice((1, 2))) for name in names]
    keys = plan_keys(_MODEL, of, Objective.THROUGHPUT, shape=random.choice(_SHAPES), seed=seed)
    return desk.request(keys), _in_words(of)


def _in_words(of: Sequence[MachineKeys]) -> str:
    """Such as `2 x 4 A10 + 1 x 8 L4`: machines x devices."""
    return " + ".join(f"{machine.count} x {machine.devices} {machine.device}" for machine in of)


def _by_rate(plans: Iterable[Plan]) -> list[Plan]:
    return sorted(plans, key=lambda plan: -plan.rate_rps)


def _spread(table: Sequence[Plan], count: int) -> list[tuple[int, Plan]]:
    """At most `count` plans from the first to the last, with their ranks from 1."""
    ranks = np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int))
    return [(int(rank) + 1, table[int(rank)]) for rank in ranks]


def _agreement(tried: Sequence[tuple[Plan, float]]) -> Row:
    """Of plans and their simulated rates."""
    closed = [plan.rate_rps for plan, _ in tried]
    simulated = [rate for _, rate in tried]
    errors = [abs(ours / theirs - 1) for ours, theirs in zip(closed, simulated, strict=True)]
    # A rank correlation needs two different ranks on either side.
    varies = len(set(closed)) > 1 and len(set(simulated)) > 1
    return {
        "compared_plans": len(tried),
        "mean_error": fmean(errors),
        "worst_error": max(errors),
        "rank_correlation": float(spearmanr(closed, simulated).statistic) if varies else None,
    }
