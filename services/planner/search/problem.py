"""What is searched for: devices, ways to use them, and which of two plans is better."""

from collections.abc import Mapping
from math import inf, isfinite, isnan
from typing import Final

import msgspec

from common.messages.control import Role
from services.planner.errors import PlannerError
from services.planner.plan import Group, Option, Plan, Serving

TOLERANCE: Final = 1e-6
"""By which share a plan may miss the wanted rate or exceed the budget."""

Uses = Mapping[str, frozenset[Role]]
"""Pool → exactly the roles that it has instances of; free where a pool is not named."""


class Problem(msgspec.Struct, frozen=True):
    """The most requests per second, or the least price for a rate. Raises PlannerError for impossible figures.

    Instances of a pool pack into its machines whatever their counts: their sizes are powers of two that divide the
    devices of a machine. So a plan suits a pool where its instances take no more than all the pool's devices.
    """

    pools: Mapping[str, int]
    """Name → devices, over all machines."""
    options: tuple[Option, ...]
    """`whole_s` may be infinite: a D that never computes a prompt."""
    servings: tuple[Serving, ...] = tuple(Serving)
    rate_rps: float | None = None
    """Wanted is the least price that sustains it; None: the most rate."""
    budget: float | None = None
    """Most price per hour; None: any."""

    def __post_init__(self) -> None:
        for option in self.options:
            _check(option, self.pools)
        for name, devices in self.pools.items():
            if devices < 0:
                raise PlannerError(f"pool {name!r} has {devices!r} devices; give 0 or more")
        if self.rate_rps is not None and not 0 < self.rate_rps < inf:
            raise PlannerError(f"a rate of {self.rate_rps!r} requests/s cannot be planned for; give a positive number")
        if self.budget is not None and not self.budget >= 0:
            raise PlannerError(f"a budget of {self.budget!r} per hour cannot be kept; give 0 or more")

    def usable(self, serving: Serving) -> tuple[Option, ...]:
        """The options that can have a part in plans of `serving`; none where a role that it needs is missing."""
        options = tuple(option for option in self.options if _is_usable(option, serving, self.pools[option.pool]))
        needed = {Role.DECODE} if serving is Serving.AGGREGATED else set(Role)
        return options if {option.role for option in options} == needed else ()

    def suits(self, plan: Plan) -> bool:
        """Whether the plan has the rate that is wanted, at a price within the budget."""
        is_enough = self.rate_rps is None or plan.rate_rps >= self.rate_rps * (1 - TOLERANCE)
        return plan.rate_rps > 0 and is_enough and self.affords(plan)

    def affords(self, plan: Plan) -> bool:
        """Whether the plan is within the budget."""
        return self.budget is None or plan.price <= self.budget * (1 + TOLERANCE)

    def fits(self, plan: Plan) -> bool:
        """Whether the pools have devices for all its instances."""
        taken = dict.fromkeys(self.pools, 0)
        for group in plan.groups:
            taken[group.option.pool] += group.count * group.option.devices
        return all(taken[pool] <= devices for pool, devices in self.pools.items())

    def order(self, plan: Plan) -> tuple[float, float, float]:
        """The less the better, of plans that suit. Ties of the rate go to the cheaper, then to fewer devices; ties of
        the price to fewer devices, then to the higher rate.
        """
        rate, price, devices = _rounded(plan.rate_rps), _rounded(plan.price), devices_of(plan)
        return (-rate, price, devices) if self.rate_rps is None else (price, devices, -rate)

    def ranking(self, plan: Plan) -> tuple[object, ...]:
        """`order`, and the same of any two different plans never: simple servings and few kinds of instances first."""
        words = tuple((*option_key(group.option), group.count) for group in plan.groups)
        return (*self.order(plan), tuple(Serving).index(plan.serving), len(words), words)


def option_key(option: Option) -> tuple[object, ...]:
    """What options are ordered by: pool, role and strategy, then their figures."""
    figures = (option.price, option.prefill_s, option.decode_s, option.whole_s, option.batch or 0)
    return (option.pool, option.role is Role.DECODE, option.strategy, *figures)


def make_plan(serving: Serving, groups: tuple[Group, ...], rate_rps: float) -> Plan:
    """A plan whose groups are in order, without empty ones."""
    present = [group for group in groups if group.count]
    return Plan(serving, tuple(sorted(present, key=lambda group: option_key(group.option))), rate_rps)


def devices_of(plan: Plan) -> int:
    """Devices that the plan takes, of all pools."""
    return sum(group.count * group.option.devices for group in plan.groups)


def uses_of(plan: Plan, pool: str) -> frozenset[Role]:
    """Which roles the instances of a pool have; empty where the plan leaves it unused."""
    return frozenset(group.option.role for group in plan.groups if group.option.pool == pool)


def _is_usable(option: Option, serving: Serving, devices: int) -> bool:
    if option.devices > devices:
        return False
    if serving is Serving.AGGREGATED:
        return option.role is Role.DECODE and isfinite(option.whole_s)
    return True


def _check(option: Option, pools: Mapping[str, int]) -> None:
    name = f"{option.role} with {option.strategy} of pool {option.pool!r}"
    if option.pool not in pools:
        raise PlannerError(f"{name}: no such pool; there are {', '.join(map(repr, pools)) or 'none'}")
    if not (0 <= option.price < inf):
        raise PlannerError(f"{name}: a price of {option.price!r}; give 0 or more")
    needed = {"prefill_s": option.prefill_s} if option.role is Role.PREFILL else {"decode_s": option.decode_s}
    for key, seconds in needed.items():
        if not 0 < seconds < inf:
            raise PlannerError(f"{name}: {key} is {seconds!r}; give positive seconds, or leave the option out")
    if option.role is Role.DECODE and (isnan(option.whole_s) or option.whole_s < option.decode_s):
        raise PlannerError(f"{name}: whole_s {option.whole_s!r} is less than decode_s {option.decode_s!r}")


def _rounded(figure: float) -> float:
    return float(f"{figure:.9g}")
