"""The cheapest plan for each of several rates, and whether it holds what it promises and no more."""

from collections.abc import Iterator

from services.planner.benchmark.cases import LIMITS, LISTED, Pair, machines, plan_keys
from services.planner.benchmark.desk import SIMULATED_PLANS, Desk, Row, tried_columns
from services.planner.plan import Plan
from services.planner.report.plan_words import in_words
from services.planner.request import Objective, PlanRequest
from services.planner.trials.deployment import deployed
from services.planner.trials.evaluate import Evaluation, within
from services.planner.trials.trial_load import coming_at, trial_of
from services.simulator.runs.report import Report
from services.simulator.runs.system import serve

RATES = (2.0, 5.0, 10.0, 20.0)
"""Requests per second."""
OVERLOAD = 1.5
_MACHINES = 4


def rate_rows(desk: Desk, *, quick: bool) -> Iterator[Row]:
    """A row of kind "rate" for each pair and rate: the plan; and one of kind "tightness": what becomes of it at its own
    rate and at 1.5 times that.
    """
    for pair in LISTED[:1] if quick else LISTED:
        for rate in RATES[:2] if quick else RATES:
            desk.on_step(f"rates: {pair.name} at {rate:g} requests/s")
            request = _request(desk, pair, rate, devices=2 if quick else 8)
            found = desk.planned(request)
            best = None if found is None else desk.best_of(found.top(SIMULATED_PLANS), request)
            yield _rate_row(pair, rate, best)
            if best is not None:
                yield _tightness_row(desk, pair, request, best.plan)


def _request(desk: Desk, pair: Pair, rate: float, *, devices: int) -> PlanRequest:
    of = [machines(kind, _MACHINES, devices) for kind in (pair.first, pair.second)]
    keys = plan_keys(pair.model, of, Objective.PRICE, shape=pair.shape, limits=LIMITS, rate=rate)
    return desk.request(keys)


def _rate_row(pair: Pair, rate: float, best: Evaluation | None) -> Row:
    return {
        "kind": "rate",
        "where": "simulated",
        "repeats": 1,
        "pair": pair.name,
        "model": pair.model,
        "load": pair.shape,
        "prices": pair.prices,
        "rate_rps": rate,
        "limit_ttft_p99_s": LIMITS.ttft_p99_s,
        "limit_tpot_p99_s": LIMITS.tpot_p99_s,
        **tried_columns(best),
    }


def _tightness_row(desk: Desk, pair: Pair, request: PlanRequest, plan: Plan) -> Row:
    planned, over = (_served(desk, request, plan, plan.rate_rps * factor) for factor in (1.0, OVERLOAD))
    return {
        "kind": "tightness",
        "where": "simulated",
        "repeats": 1,
        "pair": pair.name,
        "model": pair.model,
        "load": pair.shape,
        "plan": in_words(plan),
        "planned_rps": plan.rate_rps,
        "ttft_p99_s": planned.ttft.p99,
        "tpot_p99_s": planned.tpot.p99,
        "within_limits": within(planned, request.limits),
        "over_rps": plan.rate_rps * OVERLOAD,
        "over_ttft_p99_s": over.ttft.p99,
        "over_tpot_p99_s": over.tpot.p99,
        "over_within_limits": within(over, request.limits),
    }


def _served(desk: Desk, request: PlanRequest, plan: Plan, rate: float) -> Report:
    system = deployed(plan, request)
    trial = trial_of(request.workload, system.cluster, request.limits, rate, desk.effort.most_requests)
    return serve(system, coming_at(trial.workload, rate, desk.effort.seed))
