"""Two kinds of devices together against each alone, for the same money."""

from collections.abc import Iterator
from itertools import product
from math import ceil

import msgspec

from services.planner.benchmark.cases import LIMITS, PAIRS, TIGHT, Kind, Pair, machines, plan_keys
from services.planner.benchmark.desk import Desk, Row, tried_columns
from services.planner.files.plan_keys import LimitKeys, PlanKeys
from services.planner.plan import Plan, Serving
from services.planner.request import Objective, PlanRequest
from services.planner.trials.evaluate import Evaluation

PRICE_FACTORS = (0.5, 0.75, 1.0)
"""Of the second device's price: lists differ by as much."""
_BUDGET_DEVICES = 8
"""Devices of the first kind that the budget pays for."""


def mixed_rows(desk: Desk, *, quick: bool) -> Iterator[Row]:
    """A row for each pair and price: most goodput of each kind alone and of both, by closed form and simulated."""
    for pair, limits in product(PAIRS[:1], (TIGHT,)) if quick else product(PAIRS, (TIGHT, LIMITS)):
        for factor in PRICE_FACTORS[1:2] if quick else PRICE_FACTORS:
            desk.on_step(f"mixed: {pair.name}, {pair.model}, price x {factor:g}")
            second = msgspec.structs.replace(pair.second, price=factor * pair.second.price)
            case = _Case(msgspec.structs.replace(pair, second=second), limits, devices=2 if quick else 8)
            yield {**_row(desk, case), "price_factor": factor}


class _Case(msgspec.Struct, frozen=True):
    pair: Pair
    limits: LimitKeys
    devices: int
    """Of each machine."""

    @property
    def budget(self) -> float:
        """Per hour."""
        return _BUDGET_DEVICES * self.pair.first.price

    def keys(self, *kinds: Kind) -> PlanKeys:
        """The plan file for these kinds, with enough of each to spend it all on one."""
        of = [machines(kind, ceil(self.budget / (self.devices * kind.price)), self.devices) for kind in kinds]
        return plan_keys(
            self.pair.model, of, Objective.GOODPUT, shape=self.pair.shape, limits=self.limits, budget=self.budget
        )


def _row(desk: Desk, case: _Case) -> Row:
    pair = case.pair
    kinds = (pair.first, pair.second)
    alone = [_best(desk, desk.request(case.keys(kind))) for kind in kinds]
    together = _best(desk, desk.request(case.keys(*kinds)), uses_all=True)
    row: dict[str, str | int | float | bool | None] = {
        "kind": "mixed",
        "where": "simulated",
        "repeats": 1,
        "pair": pair.name,
        "model": pair.model,
        "load": pair.shape,
        "prices": pair.prices,
        "budget_per_h": case.budget,
        "limit_ttft_p99_s": case.limits.ttft_p99_s,
        "limit_tpot_p99_s": case.limits.tpot_p99_s,
    }
    for name, found in zip(("first", "second", "mixed"), (*alone, together), strict=True):
        row |= {f"{name}_{column}": value for column, value in tried_columns(found).items()}
    return row | {
        "mixed_over_best_alone_closed_form": _gain(row, "closed_form_rps"),
        "mixed_over_best_alone_simulated": _gain(row, "simulated_rps"),
    }


def _best(desk: Desk, request: PlanRequest, *, uses_all: bool = False) -> Evaluation | None:
    """Of each serving's best plan by closed form the one with the most simulated goodput; `uses_all`: of the plans that
    use all pools.
    """
    found = desk.planned(request)
    firsts: dict[Serving, Plan] = {}
    for plan in () if found is None else found.plans:
        if not uses_all or _pools(plan) == len(request.pools):
            firsts.setdefault(plan.serving, plan)
    return desk.best_of(firsts.values(), request)


def _pools(plan: Plan) -> int:
    return len({group.option.pool for group in plan.groups})


def _gain(row: Row, column: str) -> float | None:
    first, second, mixed = (row[f"{name}_{column}"] for name in ("first", "second", "mixed"))
    rates = [rate for rate in (first, second) if isinstance(rate, float) and rate > 0]
    return mixed / max(rates) if isinstance(mixed, float) and rates else None
