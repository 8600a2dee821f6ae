"""A profile of one running instance: its grid measured, fitted and put together."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec

from common.costs.step import Step
from common.ids import InstanceId
from common.messages.operator import InstanceInfo
from services.planner.errors import Busy
from services.scheduling.profiles.fit import fit_costs
from services.scheduling.profiles.profile import Origin, Point, Profile, Subject
from services.scheduling.profiles.profile_grid import GridLimits, point_of

_RUNS_PER_VISIT: Final = 2
_BUSY_PAUSE_S: Final = 0.5
_BUSY_PAUSES: Final = 60


class Measurer(Protocol):
    """Who lets an instance measure a step: a MeshClient."""

    def measure(self, instance: InstanceId, step: Step, repeats: int) -> tuple[float, ...]:
        """Seconds of each run. Raises Busy where the instance has something else to do."""
        ...


class Survey(msgspec.Struct, frozen=True):
    """What is measured on one instance: each of `steps` at least `repeats` times."""

    instance: InstanceId
    steps: tuple[Step, ...]
    repeats: int

    def visits(self) -> Iterator[tuple[Step, int]]:
        """The steps in the order measured, with how many runs at a time.

        The whole grid several times over, not each step several times in a row: a disturbance of some seconds then
        meets one run of many steps, which their medians forget, and not all runs of a few.
        """
        left = self.repeats
        while left > 0:
            runs = min(_RUNS_PER_VISIT, left)
            left -= runs
            for step in self.steps:
                yield step, runs

    def num_visits(self) -> int:
        """How many `visits` there are."""
        return len(self.steps) * -(-self.repeats // _RUNS_PER_VISIT)


def limits_of(info: InstanceInfo) -> GridLimits:
    """What a step of this instance can be."""
    member = info.member
    return GridLimits(
        context_length=member.context_length,
        kv_capacity_tokens=member.kv_capacity_tokens,
        block_size=member.layout.block_size,
        max_batch=member.max_batch,
        budget=member.budget,
    )


def measure_points(
    survey: Survey, measurer: Measurer, on_visit: Callable[[Step], None], sleep: Callable[[float], None]
) -> tuple[Point, ...]:
    """Every step of the survey measured; `on_visit` is told before each visit. Raises PlannerError.

    Waits for an instance that is busy, but not for ever.
    """
    seconds: dict[Step, list[float]] = {step: [] for step in survey.steps}
    for step, runs in survey.visits():
        on_visit(step)
        seconds[step] += _patiently(partial(measurer.measure, survey.instance, step, runs), sleep)
    return tuple(point_of(step, measured) for step, measured in seconds.items())


def _patiently(measure: Callable[[], tuple[float, ...]], sleep: Callable[[float], None]) -> tuple[float, ...]:
    for _ in range(_BUSY_PAUSES):
        try:
            return measure()
        except Busy:
            sleep(_BUSY_PAUSE_S)
    return measure()


def unrest(points: Sequence[Point]) -> float:
    """How disturbed a measurement was: of its points the median ratio of the longest run to the shortest, 1 at best."""
    return statistics.median(point.seconds_max / point.seconds_min for point in points)


def profile_of(info: InstanceInfo, points: Sequence[Point], date: str) -> Profile:
    """The profile of an instance from its measured points. Raises ProfileError where they do not suffice."""
    member, device = info.member, info.member.device
    costs, fits = fit_costs(points)
    return Profile(
        subject=Subject(model=member.layout.model, dtype=device.dtype, tp=device.tp, pp=device.pp),
        origin=Origin.MEASURED,
        device=device.name,
        costs=costs,
        fits=fits,
        points=tuple(points),
        threads=device.threads,
        slowdown=device.slowdown,
        kv_capacity_tokens=member.kv_capacity_tokens,
        date=date,
    )
