"""A smaller plan of the same mix: what is simulated where the whole is too large to be."""

import msgspec

from services.planner.closed_forms.capacity import rate_rps
from services.planner.plan import Plan


class Part(msgspec.Struct, frozen=True):
    """Some instances of each group of a plan."""

    plan: Plan
    share: float
    """Of the whole's rate, by closed form: figures of the part are scaled by it, so that rounded counts do no harm."""


def whole_of(plan: Plan) -> Part:
    """All of it."""
    return Part(plan, 1.0)


def part_of(plan: Plan, divisor: float) -> Part:
    """About one in `divisor` of the instances of every group, and at least one.

    A part does a little worse than its share: the fewer instances, the less they can make up for each other's bursts.
    """
    groups = tuple(msgspec.structs.replace(group, count=max(1, round(group.count / divisor))) for group in plan.groups)
    share = rate_rps(plan.serving, groups) / rate_rps(plan.serving, plan.groups)
    return Part(Plan(plan.serving, groups, share * plan.rate_rps), share)
