"""Every plan there is, where these are few enough to list."""

from collections.abc import Iterator, Sequence
from itertools import chain, product
from math import prod

from common.messages.control import Role
from services.planner.closed_forms.capacity import rate_rps
from services.planner.plan import Group, Option, Plan, Serving
from services.planner.search.problem import Problem, Uses, make_plan, uses_of

_Fillings = list[tuple[Group, ...]]
"""What instances a pool can have."""


class Table:
    """All plans that suit a problem, best first."""

    def __init__(self, problem: Problem) -> None:
        plans = chain.from_iterable(_plans(problem, serving) for serving in problem.servings)
        self.plans = tuple(sorted(plans, key=problem.ranking))
        self._pools = tuple(problem.pools)
        self._firsts: dict[tuple[Serving, tuple[frozenset[Role], ...]], Plan] = {}
        for plan in self.plans:
            self._firsts.setdefault((plan.serving, tuple(uses_of(plan, pool) for pool in self._pools)), plan)

    def best(self, serving: Serving, uses: Uses) -> Plan | None:
        """The first plan of a serving that has these uses; None where there is none."""
        for (kind, roles), plan in self._firsts.items():
            named = zip(self._pools, roles, strict=True)
            if kind is serving and all(uses.get(pool, used) == used for pool, used in named):
                return plan
        return None


def count_combinations(problem: Problem) -> int:
    """How many combinations of instance counts fit in the pools, over all servings; what a Table goes through."""
    total = 0
    for serving in problem.servings:
        options = problem.usable(serving)
        total += prod(_ways(_of_pool(options, name), devices) for name, devices in problem.pools.items())
    return total


def _ways(options: Sequence[Option], devices: int) -> int:
    """In how many ways instances can take up to `devices`: coins that need not make up the whole sum."""
    ways = [1] + [0] * devices
    for option in options:
        for taken in range(option.devices, devices + 1):
            ways[taken] += ways[taken - option.devices]
    return sum(ways)


def _plans(problem: Problem, serving: Serving) -> Iterator[Plan]:
    options = problem.usable(serving)
    for fillings in product(*(_fill(_of_pool(options, name), size) for name, size in problem.pools.items())):
        groups = tuple(chain.from_iterable(fillings))
        if serving is Serving.CRONUS and all(group.option.role is Role.DECODE for group in groups):
            continue
        plan = make_plan(serving, groups, rate_rps(serving, groups))
        if problem.suits(plan):
            yield plan


def _fill(options: Sequence[Option], devices: int) -> _Fillings:
    if not options:
        return [()]
    first, rest = options[0], options[1:]
    fillings = []
    for count in range(devices // first.devices + 1):
        head = (Group(first, count),) if count else ()
        fillings += [(*head, *tail) for tail in _fill(rest, devices - count * first.devices)]
    return fillings


def _of_pool(options: Sequence[Option], pool: str) -> list[Option]:
    return [option for option in options if option.pool == pool]
