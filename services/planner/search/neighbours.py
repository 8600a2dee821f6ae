"""Plans one step away from a plan: what a sweep of the P:D ratio around an optimum is made of."""

from collections import Counter
from collections.abc import Iterator, Sequence

from common.messages.control import Role
from services.planner.closed_forms.capacity import rate_rps
from services.planner.plan import Group, Option, Plan, Serving
from services.planner.search.problem import Problem, make_plan


def neighbours(plan: Plan, problem: Problem) -> tuple[Plan, ...]:
    """Every plan of the same serving with one instance more, one less, or one of a role in place of one of the other
    role on the same pool (of any strategy). Best first; within the devices and the budget, though some may miss the
    wanted rate.
    """
    options = problem.usable(plan.serving)
    counts = Counter({group.option: group.count for group in plan.groups})
    steps = (_plan(plan.serving, each) for each in _steps(counts, options))
    fitting = {each for each in steps if _is_whole(each) and problem.fits(each) and problem.affords(each)}
    return tuple(sorted(fitting, key=problem.ranking))


def _steps(counts: Counter[Option], options: Sequence[Option]) -> Iterator[Counter[Option]]:
    for option in options:
        yield counts + Counter([option])
    for taken in counts:
        without = counts - Counter([taken])
        yield without
        for option in options:
            if option.pool == taken.pool and option.role is not taken.role:
                yield without + Counter([option])


def _plan(serving: Serving, counts: Counter[Option]) -> Plan:
    groups = tuple(Group(option, count) for option, count in counts.items())
    return make_plan(serving, groups, rate_rps(serving, groups))


def _is_whole(plan: Plan) -> bool:
    """Whether it serves at all, and as its serving does: Cronus without P is aggregated."""
    return plan.rate_rps > 0 and (plan.serving is not Serving.CRONUS or plan.instances(Role.PREFILL) > 0)
