"""The best plan of a serving as a mixed-integer linear programme: where plans are too many to list."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise
from typing import Final, assert_never

import msgspec
import numpy as np

from common.messages.control import Role
from services.planner.closed_forms.capacity import ceilings, rate_rps
from services.planner.errors import PlannerError
from services.planner.plan import Group, Plan, Serving
from services.planner.search.highs import LinearProgramme, Vector, solve
from services.planner.search.problem import TOLERANCE, Problem, Uses, devices_of, make_plan
from services.planner.search.pruning import Kept

_SCALE: Final = 1e3
"""What the rate of the best plan is about, scaled: the solver's tolerances are absolute."""

_TIE_NODES: Final = 2_000
"""Of the solver's tree: some tenths of a second."""

_ROUNDING: Final = 1e-6


class _Term(Enum):
    """Of `Problem.order`."""

    RATE = auto()
    PRICE = auto()
    DEVICES = auto()


@dataclass(frozen=True)
class _AtLeast:
    """`rows` · counts >= `bound`, every row."""

    rows: Vector
    bound: float


class Best(msgspec.Struct, frozen=True):
    """The best plan of some; None where none suits."""

    plan: Plan | None
    is_proved: bool
    """Whether no other has more rate, or a lower price where that is wanted most."""


class Programme:
    """The plans of one serving that consist of `kept` options; the counts of instances are its columns.

    The rate is the least of `ceilings`: a column of its own where it is what is wanted most, else rows. Rates and
    prices are scaled.
    """

    def __init__(self, problem: Problem, serving: Serving, kept: Sequence[Kept]) -> None:
        self._problem = problem
        self._serving = serving
        self._options = [each.option for each in kept]
        self._most = np.array([each.most for each in kept], dtype=np.float64)
        self._sizes = np.array([[option.devices for option in self._options]], dtype=np.float64)
        prices = np.array([option.price for option in self._options])
        rates = np.array(ceilings(serving, self._options))
        self._price_unit = float(min(prices[prices > 0], default=1.0))
        self._prices = (prices / self._price_unit)[np.newaxis]
        self._rate_unit = self._largest_rate(rates.max(axis=0), prices) / _SCALE
        self._rates = rates / self._rate_unit
        self._always = [*self._pools(), *self._wanted()]

    def best(self, uses: Uses, most_nodes: int) -> Best:
        """The first in `Problem.order` of the plans that suit and have these uses.

        One term after the other: each is the solver's goal once, and must then not get worse. A tree of `most_nodes`
        ends the search for the first term, which is otherwise right to some 1e-8; a smaller one ends those for ties.
        """
        most = self._allowed(uses)
        rows = [*self._always, *self._present(uses)]
        terms = self._terms()
        solution = solve(self._programme(terms[0], rows, most), most_nodes)
        if solution.columns is None:
            return Best(None, solution.is_proved)
        plan = self._plan(solution.columns)
        if not self._problem.fits(plan):
            raise PlannerError(f"the solver found a plan that does not fit in the pools: {plan!r}; report this problem")
        if not self._problem.suits(plan):
            return Best(None, solution.is_proved)
        for last, term in pairwise(terms):
            rows.append(_AtLeast(self._goal(last), self._reached(last, plan)))
            if self._may_improve(term, plan, rows, most):
                columns = solve(self._programme(term, rows, most), min(_TIE_NODES, most_nodes)).columns
                plan = plan if columns is None else self._better(plan, self._plan(columns))
        return Best(plan, solution.is_proved)

    def _better(self, plan: Plan, other: Plan) -> Plan:
        """Of two plans the one that is better in the first term that tells them apart."""
        if not (self._problem.fits(other) and self._problem.suits(other)):
            return plan
        for term in self._terms():
            gain = self._reached(term, other) - self._reached(term, plan)
            if abs(gain) > _ROUNDING:
                return other if gain > 0 else plan
        return plan

    def relaxed(self) -> float | None:
        """What no plan beats, were parts of instances possible: most requests/s, or least price. None: none suits."""
        term = self._terms()[0]
        reached = self._relaxed(term, self._always, self._most)
        if reached is None:
            return None
        return reached * self._rate_unit if term is _Term.RATE else -reached * self._price_unit

    def _terms(self) -> list[_Term]:
        if self._problem.rate_rps is None:
            return [_Term.RATE, *([_Term.PRICE] if self._prices.any() else []), _Term.DEVICES]
        return [_Term.PRICE, _Term.DEVICES, _Term.RATE]

    def _goal(self, term: _Term) -> Vector:
        """Rows whose least is to be as high as possible."""
        return {_Term.RATE: self._rates, _Term.PRICE: -self._prices, _Term.DEVICES: -self._sizes}[term]

    def _reached(self, term: _Term, plan: Plan) -> float:
        """The least of the goal in a plan."""
        match term:
            case _Term.RATE:
                return plan.rate_rps / self._rate_unit
            case _Term.PRICE:
                return -plan.price / self._price_unit
            case _Term.DEVICES:
                return -devices_of(plan)
            case _:
                assert_never(term)

    def _may_improve(self, term: _Term, plan: Plan, rows: Sequence[_AtLeast], most: Vector) -> bool:
        """False where even parts of instances would not help: much sooner known than solved."""
        reached = self._relaxed(term, rows, most)
        if reached is not None and term is _Term.DEVICES:
            reached = math.floor(reached + _ROUNDING)
        return reached is not None and reached > self._reached(term, plan) + _ROUNDING

    def _relaxed(self, term: _Term, rows: Sequence[_AtLeast], most: Vector) -> float | None:
        programme = self._programme(term, rows, most)
        columns = solve(dataclasses.replace(programme, integral=np.zeros(len(programme.cost)))).columns
        return None if columns is None else float(min(self._goal(term) @ columns[: len(most)]))

    def _pools(self) -> Iterator[_AtLeast]:
        for name, devices in self._problem.pools.items():
            mine = np.array([option.pool == name for option in self._options])
            yield _AtLeast(-(self._sizes * mine), -devices)

    def _wanted(self) -> Iterator[_AtLeast]:
        if self._problem.budget is not None:
            yield _AtLeast(-self._prices, -self._problem.budget * (1 + TOLERANCE) / self._price_unit)
        if self._problem.rate_rps is not None:
            yield _AtLeast(self._rates, self._problem.rate_rps * (1 - TOLERANCE) / self._rate_unit)
        if self._serving is not Serving.AGGREGATED:
            yield _one_of(option.role is Role.PREFILL for option in self._options)

    def _present(self, uses: Uses) -> Iterator[_AtLeast]:
        for pool, roles in uses.items():
            for role in roles:
                yield _one_of(option.pool == pool and option.role is role for option in self._options)

    def _allowed(self, uses: Uses) -> Vector:
        """The most instances of each option."""
        return self._most * [option.role in uses.get(option.pool, Role) for option in self._options]

    def _largest_rate(self, speeds: Vector, prices: Vector) -> float:
        """About the rate of the best plan, in requests/s; some times too much is no harm."""
        problem, least = self._problem, float(min(speeds))
        if problem.rate_rps is not None:
            return max(problem.rate_rps, least)
        all_devices = float(self._most @ speeds)
        if problem.budget is None or not prices.all():
            return all_devices
        return max(least, min(all_devices, problem.budget * float(max(speeds / prices))))

    def _programme(self, term: _Term, at_least: Sequence[_AtLeast], most: Vector) -> LinearProgramme:
        goal = self._goal(term)
        programme = LinearProgramme(
            cost=-goal[0],
            rows=np.concatenate([each.rows for each in at_least]),
            bounds=np.concatenate([np.full(len(each.rows), each.bound) for each in at_least]),
            upper=most,
            integral=np.ones(len(most)),
        )
        return programme if len(goal) == 1 else _with_least(programme, goal)

    def _plan(self, columns: Vector) -> Plan:
        counted = zip(self._options, columns[: len(self._options)], strict=True)
        groups = tuple(Group(option, round(count)) for option, count in counted)
        return make_plan(self._serving, groups, rate_rps(self._serving, groups))


def _one_of(columns: Iterable[bool]) -> _AtLeast:
    return _AtLeast(np.array([[*columns]], dtype=np.float64), 1)


def _with_least(programme: LinearProgramme, ceilings: Vector) -> LinearProgramme:
    """The programme whose goal is the most of a further column that exceeds no ceiling."""
    ceilings_rows = np.pad(ceilings, ((0, 0), (0, 1)), constant_values=-1)
    return LinearProgramme(
        cost=np.append(np.zeros(len(programme.cost)), -1),
        rows=np.concatenate([np.pad(programme.rows, ((0, 0), (0, 1))), ceilings_rows]),
        bounds=np.append(programme.bounds, np.zeros(len(ceilings))),
        upper=np.append(programme.upper, max(ceilings @ programme.upper)),
        integral=np.append(programme.integral, 0),
    )
