"""What cannot be a part of any plan, why, and by how much; and that there is no plan at all. Pure."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import msgspec

from common.messages.control import Role
from services.planner.errors import PlanError
from services.planner.plan import Serving
from services.planner.request import Limits, PlanRequest, Pool
from services.simulator.hardware.strategy import Strategy


class Obstacle(StrEnum):
    """Why a pool cannot be used in a way."""

    STRATEGY = "strategy"
    """It does not suit the model or the machine."""
    MEMORY = "memory"
    TPOT = "TPOT limit"
    TTFT = "TTFT limit"


class Refused(msgspec.Struct, frozen=True):
    """One way to use a pool that is not possible."""

    pool: str
    strategy: Strategy
    obstacle: Obstacle
    reason: str
    """In a sentence."""
    role: Role | None = None
    """None: any."""
    serving: Serving | None = None
    """None: any."""
    short_bytes: int | None = None
    """Memory that each device lacks."""
    floor_s: float | None = None
    """The least that it could do without any load, where a limit is the obstacle."""


def refused_strategies(pools: Sequence[Pool]) -> Iterator[Refused]:
    """What the pools refuse by themselves."""
    for pool in pools:
        for strategy, misfit in pool.refused.items():
            obstacle = Obstacle.STRATEGY if misfit.short_bytes is None else Obstacle.MEMORY
            yield Refused(pool.name, strategy, obstacle, misfit.reason, short_bytes=misfit.short_bytes)


def no_plan(refused: Sequence[Refused], request: PlanRequest, limits: Limits) -> PlanError:
    """That nothing is left, and the smallest change that would leave something."""
    remedies = [
        *_above(refused, Obstacle.TTFT, "limits.ttft_p99_s", limits.ttft_p99_s),
        *_above(refused, Obstacle.TPOT, "limits.tpot_p99_s", limits.tpot_p99_s),
    ]
    if not remedies:
        remedies = list(_more_memory(refused, request)) or [each.reason for each in refused[:1]]
    return PlanError(f"no feasible plan: {'; '.join(remedies) or 'no pool has a device that can be used'}")


def _above(refused: Sequence[Refused], obstacle: Obstacle, key: str, limit_s: float | None) -> Iterator[str]:
    nearest = _least(refused, obstacle, lambda each: each.floor_s)
    if nearest is None or nearest.floor_s is None or limit_s is None:
        return
    how = "" if nearest.serving is None else f", {nearest.serving.value}"
    if nearest.floor_s > limit_s:
        yield (
            f"{key} is {limit_s:g}, below the floor of {nearest.floor_s:.4g} s that the best of the devices has "
            f"without any load ({nearest.pool} with {nearest.strategy}{how}); raise it, or use faster devices"
        )
    else:
        yield (
            f"{key} is {limit_s:g}, and the best of the devices needs {nearest.floor_s:.4g} s without any load "
            f"({nearest.pool} with {nearest.strategy}{how}), which leaves no room for others; raise it"
        )


def _more_memory(refused: Sequence[Refused], request: PlanRequest) -> Iterator[str]:
    nearest = _least(refused, Obstacle.MEMORY, lambda each: each.short_bytes)
    if nearest is None or nearest.short_bytes is None:
        return
    device = next(pool.device for pool in request.pools if pool.name == nearest.pool)
    yield (
        f"memory is short everywhere, least by {nearest.short_bytes / 1e9:.2f} GB on each {device} "
        f"({nearest.pool} with {nearest.strategy}): {nearest.reason}"
    )


def _least(refused: Sequence[Refused], obstacle: Obstacle, by: Callable[[Refused], float | None]) -> Refused | None:
    known = [
        (value, index)
        for index, each in enumerate(refused)
        if each.obstacle is obstacle
        for value in [by(each)]
        if value is not None
    ]
    return refused[min(known)[1]] if known else None
