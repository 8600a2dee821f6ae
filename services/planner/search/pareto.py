"""What tighter and looser limits cost: the best plan's rate or price over a grid of limits. Pure."""

from collections.abc import Callable, Iterator
from enum import StrEnum

import msgspec

from services.planner.plan import Plan
from services.planner.request import Limits, Objective, PlanRequest

SCALES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
"""Of the limit that the request has: steps of about a square root of two."""

FindPlan = Callable[[PlanRequest], Plan | None]
"""The best plan by closed forms; None where none is feasible."""


class Limit(StrEnum):
    """Which of the limits is varied, the other staying."""

    TTFT = "ttft_p99_s"
    TPOT = "tpot_p99_s"


class FrontPoint(msgspec.Struct, frozen=True):
    """The best plan for one pair of limits."""

    limit: Limit
    limits: Limits
    plan: Plan | None
    """None: no plan keeps them."""

    @property
    def limit_s(self) -> float:
        """The limit that was varied."""
        value: float = getattr(self.limits, self.limit)
        return value


def limits_of(request: PlanRequest) -> tuple[Limit, ...]:
    """The limits that the request has."""
    return tuple(limit for limit in Limit if getattr(request.limits, limit) is not None)


def front(request: PlanRequest, find: FindPlan) -> Iterator[FrontPoint]:
    """For each limit of the request, the best plans as it alone is scaled by SCALES; the tightest first.

    Where throughput is wanted, which knows no limits, it is the most goodput.
    """
    if request.objective is Objective.THROUGHPUT:
        request = msgspec.structs.replace(request, objective=Objective.GOODPUT)
    for limit in limits_of(request):
        for scale in SCALES:
            scaled = {limit.value: scale * getattr(request.limits, limit)}
            limits = msgspec.structs.replace(request.limits, **scaled)
            plan = find(msgspec.structs.replace(request, limits=limits))
            yield FrontPoint(limit, limits, plan)
