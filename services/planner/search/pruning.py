"""Options that no best plan needs, and how many instances of the others one can need."""

from collections.abc import Sequence
from math import ceil
from typing import Final, assert_never

import msgspec

from common.messages.control import Role
from services.planner.plan import Option, Serving

_ROUNDING: Final = 1e-12


class Pruned(msgspec.Struct, frozen=True):
    """An option that some best plan of a serving does without."""

    serving: Serving
    option: Option
    reason: str


class Kept(msgspec.Struct, frozen=True):
    """An option of which some best plan has at most `most` instances."""

    option: Option
    most: int


def prune(serving: Serving, options: Sequence[Option], devices: int) -> tuple[tuple[Kept, ...], tuple[Pruned, ...]]:
    """Of options of one pool and role: those that a best plan of `serving` can need, and those that it does not.

    Keeps optimality. Say that a *replaces* b where some k >= 1 instances of a take no more devices than one of b, cost
    no more, and are together no slower in any work that b does. In any plan an instance of b can give way to k of a:
    the plan still fits, takes no more devices, has no higher price, no lower rate, and the same roles in every pool; so
    it is no worse in any term of `Problem.order`, under any `Uses`. Replacing is transitive (k1·k2 instances), and of
    options that replace each other the first stays, so whatever is pruned is replaced by something that is kept.

    The same backwards bounds the counts: where one instance of a takes no more devices than m >= 2 of b, costs no more
    and is no slower than all of them, m of b can give way to one of a. Each such step leaves fewer instances, so the
    steps end: at a plan with at most m − 1 of b.
    """
    kept: list[Option] = []
    pruned: list[Pruned] = []
    for index, option in enumerate(options):
        rivals = [rival for place, rival in enumerate(options) if _wins(serving, rival, option, place < index)]
        if rivals:
            best = max(rivals, key=lambda rival: _gain(serving, rival, option))
            pruned.append(Pruned(serving, option, _reason(serving, best, option)))
        else:
            kept.append(option)
    return tuple(Kept(option, _most(serving, option, kept, devices)) for option in kept), tuple(pruned)


def _wins(serving: Serving, rival: Option, option: Option, is_earlier: bool) -> bool:
    if rival is option or _copies(serving, rival, option) is None:
        return False
    return is_earlier or _copies(serving, option, rival) is None


def _copies(serving: Serving, rival: Option, option: Option) -> int | None:
    """The least number of instances of `rival` that replace one of `option`; None where no number does."""
    copies = 1
    for its, mine in zip(_speeds(serving, rival), _speeds(serving, option), strict=True):
        if mine > 0 and its == 0:
            return None
        if mine > 0:
            copies = max(copies, ceil(mine / its * (1 - _ROUNDING)))
    fits = copies * rival.devices <= option.devices and copies * rival.price <= option.price * (1 + _ROUNDING)
    return copies if fits else None


def _most(serving: Serving, option: Option, kept: Sequence[Option], devices: int) -> int:
    """How many instances of an option some best plan does not exceed."""
    bounds = [_times(option, rival) - 1 for rival in kept if _exceeds(serving, option, rival)]
    return min([devices // option.devices, *bounds])


def _exceeds(serving: Serving, option: Option, rival: Option) -> bool:
    """Whether one of `rival` takes the place of several of `option`."""
    if rival is option or (option.price == 0 and rival.price > 0):
        return False
    times = _times(option, rival) * (1 - _ROUNDING)
    pairs = zip(_speeds(serving, rival), _speeds(serving, option), strict=True)
    return all(its >= times * mine for its, mine in pairs)


def _times(option: Option, rival: Option) -> int:
    """The least number, but at least 2, of `option` that takes no fewer devices and costs no less than one `rival`."""
    price_times = ceil(rival.price / option.price * (1 - _ROUNDING)) if option.price else 1
    return max(2, -(-rival.devices // option.devices), price_times)


def _speeds(serving: Serving, option: Option) -> tuple[float, ...]:
    """Per second, of each kind of work that an instance does under `serving`."""
    if option.role is Role.PREFILL:
        return (1 / option.prefill_s,)
    match serving:
        case Serving.AGGREGATED:
            return (1 / option.whole_s,)
        case Serving.DISAGGREGATED:
            return (1 / option.decode_s,)
        case Serving.CRONUS:
            return (1 / option.decode_s, 1 / option.whole_s)
        case _:
            assert_never(serving)


def _gain(serving: Serving, rival: Option, option: Option) -> float:
    """How many times the work of `option` the `rival` does on no more devices, for no higher price."""
    pairs = zip(_speeds(serving, rival), _speeds(serving, option), strict=True)
    return _room(rival, option) * min(its / mine for its, mine in pairs if mine > 0)


def _room(rival: Option, option: Option) -> int:
    """How many of `rival` have room on the devices, and in the price, of one `option`."""
    room = option.devices // rival.devices
    return min(room, int(option.price / rival.price + _ROUNDING)) if rival.price else room


def _reason(serving: Serving, rival: Option, option: Option) -> str:
    room, gain = _room(rival, option), _gain(serving, rival, option)
    rates = f"{gain:.2f} times the rate" if gain > 1 + _ROUNDING else "the rate"
    return f"{room} × {_in_words(rival, room)} have {rates} of one {_in_words(option, 1)}"


def _in_words(option: Option, count: int) -> str:
    price = f", {count * option.price:g} per hour" if option.price else ""
    return f"{option.strategy} (devices: {count * option.devices}{price})"
