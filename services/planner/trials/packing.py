"""Which machine and which of its devices each instance of a plan gets. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import msgspec

from common.ids import InstanceId
from common.messages.control import Role
from services.planner.errors import PlannerError
from services.planner.plan import Option, Plan
from services.planner.request import Pool

_LETTER: Mapping[Role, str] = {Role.PREFILL: "p", Role.DECODE: "d"}


class Place(msgspec.Struct, frozen=True):
    """Devices of one machine, side by side."""

    machine: int
    """Of the pool, from 0."""
    first_device: int
    """Of the machine, from 0."""


class Seat(msgspec.Struct, frozen=True):
    """One instance of a plan and where it is."""

    name: InstanceId
    """POOL-p0, POOL-d3: numbered by pool and role."""
    option: Option
    pool: Pool
    place: Place


def seats(plan: Plan, pools: Iterable[Pool]) -> tuple[Seat, ...]:
    """Every instance of `plan`, in the order of its groups. Raises PlannerError where a pool cannot seat its own."""
    by_name = {pool.name: pool for pool in pools}
    options = [group.option for group in plan.groups for _ in range(group.count)]
    found: list[Seat] = []
    numbers: Counter[tuple[str, Role]] = Counter()
    for name, of_pool in groupby(sorted(options, key=lambda option: option.pool), key=lambda option: option.pool):
        pool, chosen = by_name[name], list(of_pool)
        for option, place in zip(chosen, packed(pool, [option.devices for option in chosen]), strict=True):
            number = numbers[name, option.role]
            numbers[name, option.role] += 1
            found.append(Seat(InstanceId(f"{name}-{_LETTER[option.role]}{number}"), option, pool, place))
    return tuple(found)


def packed(pool: Pool, sizes: Sequence[int]) -> tuple[Place, ...]:
    """A place for an instance of each of `sizes` devices, none across two machines.

    The largest first, each on the first machine with room.  Where of any two sizes one divides the other, as powers of
    two do, this needs the fewest machines that there can be (Coffman, Garey and Johnson, "Bin packing with divisible
    item sizes", Journal of Complexity 3, 1987).  Raises PlannerError where they do not fit.
    """
    used = [0] * pool.machines
    places: dict[int, Place] = {}
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        free = (place for place, taken in enumerate(used) if taken + sizes[index] <= pool.devices_per_machine)
        machine = next(free, None)
        if machine is None:
            raise PlannerError(
                f"instances of {_counts(sizes)} devices do not fit the {pool.machines} machines of pool "
                f"{pool.name!r} with {pool.devices_per_machine} devices each; plan fewer or smaller ones"
            )
        places[index] = Place(machine, used[machine])
        used[machine] += sizes[index]
    return tuple(places[index] for index in range(len(sizes)))


def _counts(sizes: Sequence[int]) -> str:
    return ", ".join(f"{count} x {size}" for size, count in sorted(Counter(sizes).items(), reverse=True))
