"""The best plans of a problem, with what else could be done: exhaustive where plans are few, else by a programme."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from common.messages.control import Role
from services.planner.plan import Option, Plan, Serving
from services.planner.search.enumeration import Table, count_combinations
from services.planner.search.integer_programme import Best, Programme
from services.planner.search.problem import Problem, Uses, uses_of
from services.planner.search.pruning import Kept, Pruned, prune

LISTED: Final = 50_000
"""Combinations of instance counts up to which all plans are listed."""

_MOST_NODES: Final = 20_000
_WHAT_IF_NODES: Final = 500
"""Of the solver's tree, for the best plan of a serving and for an alternative. A node takes about 0.2 ms; very few
problems need a thousand, those where unlike device types are within some percent of each other."""

_SIMPLE_USES: Final = (frozenset[Role](), frozenset({Role.PREFILL}), frozenset({Role.DECODE}))

_Solve = Callable[[Serving, Uses], Plan | None]


class Found(msgspec.Struct, frozen=True):
    """What a search found. Without plans: nothing suits the problem."""

    plans: tuple[Plan, ...]
    """Ranked, best first, no two the same: of each serving the best, the best where one pool does something else, and
    the best of each single pool."""
    table: tuple[Plan, ...]
    """Every plan that suits, best first; empty where these are too many to list."""
    pruned: tuple[Pruned, ...]
    """Options that some best plan does without. Listed in `table` nevertheless, if there is one."""
    searched: int | None
    """Combinations of instance counts gone through; None: a mixed-integer programme was solved."""
    bound: float | None
    """What no plan beats, even with parts of instances: most requests per second, or least price where a rate was
    given. None where nothing suits."""
    is_proved: bool
    """Whether the best plan of every serving is the best there is. If not, the solver was stopped, and `bound` says by
    how much another may be better. (Of the alternatives none is so important that it would be waited for so long.)"""


def best(problem: Problem, listed: int = LISTED) -> Found:
    """The best plans of a problem, and the alternatives to them. Always the same for the same problem.

    All of at most `listed` combinations are gone through. Both ways give plans that are equal in `Problem.order`, the
    programme's to some 1e-8.
    """
    kept, pruned = _pruned(problem)
    programmes = {serving: Programme(problem, serving, some) for serving, some in kept.items()}
    combinations = count_combinations(problem)
    if combinations <= listed:
        table = Table(problem)
        tops = {serving: Best(table.best(serving, {}), is_proved=True) for serving in problem.servings}
        plans = _distinct(problem, tops, table.best)
    else:
        table = None
        tops = {serving: programme.best({}, _MOST_NODES) for serving, programme in programmes.items()}
        plans = _distinct(problem, tops, lambda serving, uses: programmes[serving].best(uses, _WHAT_IF_NODES).plan)
    return Found(
        plans=plans,
        table=() if table is None else table.plans,
        pruned=pruned,
        searched=None if table is None else combinations,
        bound=_bound(problem, programmes.values()) if plans else None,
        is_proved=all(top.is_proved for top in tops.values()),
    )


def _bound(problem: Problem, programmes: Iterable[Programme]) -> float | None:
    bounds = (bound for programme in programmes if (bound := programme.relaxed()) is not None)
    return (max if problem.rate_rps is None else min)(bounds, default=None)


def _pruned(problem: Problem) -> tuple[dict[Serving, list[Kept]], tuple[Pruned, ...]]:
    """By serving that has any options."""
    kept: dict[Serving, list[Kept]] = {}
    pruned: list[Pruned] = []
    for serving in problem.servings:
        for options in _rivals(problem.usable(serving)):
            some, others = prune(serving, options, problem.pools[options[0].pool])
            kept.setdefault(serving, []).extend(some)
            pruned += others
    return kept, tuple(pruned)


def _rivals(options: Sequence[Option]) -> list[list[Option]]:
    """Options of the same pool and role."""
    groups: dict[tuple[str, Role], list[Option]] = {}
    for option in options:
        groups.setdefault((option.pool, option.role), []).append(option)
    return list(groups.values())


def _distinct(problem: Problem, tops: Mapping[Serving, Best], solve: _Solve) -> tuple[Plan, ...]:
    plans = {
        plan
        for serving, top in tops.items()
        if top.plan is not None
        for plan in (top.plan, *_alternatives(problem, top.plan, solve))
    }
    return tuple(sorted(plans, key=problem.ranking))


def _alternatives(problem: Problem, top: Plan, solve: _Solve) -> Iterator[Plan]:
    """To the best plan of a serving: the best of those where a pool is unused, prefill only or decode only while it is
    not so in `top`; and the best of those of one pool.
    """
    what_ifs: list[Uses] = [
        {pool: uses} for pool in problem.pools for uses in _SIMPLE_USES if uses != uses_of(top, pool)
    ]
    what_ifs += [{other: frozenset() for other in problem.pools if other != pool} for pool in problem.pools]
    for uses in what_ifs:
        plan = solve(top.serving, uses)
        if plan is not None:
            yield plan
