"""Two kinds of devices together against each alone, for the same money."""

from collections.abc import Iterator
from math import ceil

import msgspec

from services.planner.benchmark.cases import DECODE_HEAVY, LIMITS, PAIRS, Kind, Pair, machines, plan_keys
from services.planner.benchmark.desk import Desk, Row, tried_columns
from services.planner.evaluate import Evaluation
from services.planner.plan import Plan
from services.planner.request import Objective, PlanRequest

PRICE_FACTORS = (0.5, 1.0, 2.0)
"""Of the second device's price: lists differ by as much."""
_DECODE_HEAVY = msgspec.structs.replace(PAIRS[0], shape=DECODE_HEAVY)
_BUDGET_DEVICES = 4
"""Devices of the first kind that the budget pays for."""


def mixed_rows(desk: Desk, *, quick: bool) -> Iterator[Row]:
    """A row for each pair and price: most goodput of each kind alone and of both, by closed form and simulated."""
    for pair in PAIRS[:1] if quick else (*PAIRS, _DECODE_HEAVY):
        for factor in PRICE_FACTORS[1:2] if quick else PRICE_FACTORS:
            second = msgspec.structs.replace(pair.second, price=factor * pair.second.price)
            priced = msgspec.structs.replace(pair, second=second)
            desk.on_step(f"mixed: {pair.name}, price x {factor:g}")
            yield _row(desk, priced, factor, devices=2 if quick else 8)


def _row(desk: Desk, pair: Pair, factor: float, *, devices: int) -> Row:
    budget = _BUDGET_DEVICES * pair.first.price
    kinds = (pair.first, pair.second)
    alone = [_best(desk, _request(desk, pair, budget, devices, kind)) for kind in kinds]
    together = _best(desk, _request(desk, pair, budget, devices, *kinds), uses_all=True)
    row: dict[str, str | int | float | bool | None] = {
        "kind": "mixed",
        "where": "simulated",
        "repeats": 1,
        "pair": pair.name,
        "model": pair.model,
        "load": pair.shape,
        "prices": pair.prices,
        "price_factor": factor,
        "budget_per_h": budget,
        "limit_ttft_p99_s": LIMITS.ttft_p99_s,
        "limit_tpot_p99_s": LIMITS.tpot_p99_s,
    }
    for name, found in zip(("first", "second", "mixed"), (*alone, together), strict=True):
        row |= {f"{name}_{column}": value for column, value in tried_columns(found).items()}
    return row | {
        "mixed_over_best_alone_closed_form": _gain(row, "closed_form_rps"),
        "mixed_over_best_alone_simulated": _gain(row, "simulated_rps"),
    }


def _request(desk: Desk, pair: Pair, budget: float, devices: int, *kinds: Kind) -> PlanRequest:
    # Enough of each to spend it all on one kind.
    of = [machines(kind, ceil(budget / (devices * kind.price)), devices) for kind in kinds]
    keys = plan_keys(pair.model, of, Objective.GOODPUT, shape=pair.shape, limits=LIMITS, budget=budget)
    return desk.request(keys)


def _best(desk: Desk, request: PlanRequest, *, uses_all: bool = False) -> Evaluation | None:
    """The plan with the most simulated goodput of the first few by closed form; `uses_all`: of those that use all
    pools.
    """
    found = desk.planned(request)
    plans = () if found is None else found.plans
    return desk.best_of((plan for plan in plans if not uses_all or _pools(plan) == len(request.pools)), request)


def _pools(plan: Plan) -> int:
    return len({group.option.pool for group in plan.groups})


def _gain(row: Row, column: str) -> float | None:
    first, second, mixed = (row[f"{name}_{column}"] for name in ("first", "second", "mixed"))
    rates = [rate for rate in (first, second) if isinstance(rate, float) and rate > 0]
    return mixed / max(rates) if isinstance(mixed, float) and rates else None
