"""What groups of instances sustain: requests per second of a fluid that any instance may have any share of.

No queues: the seconds of an option are already divided by the utilisation that the limits allow.
"""

from collections.abc import Iterable, Sequence
from math import fsum
from typing import assert_never

from common.messages.control import Role
from services.planner.plan import Group, Option, Serving


def rate_rps(serving: Serving, groups: Sequence[Group]) -> float:
    """Requests per second that `groups` sustain; 0 where a stage has no instances. Aggregated ignores P."""
    match serving:
        case Serving.AGGREGATED:
            return whole_rps(groups)
        case Serving.DISAGGREGATED:
            return min(prefill_rps(groups), decode_rps(groups))
        case Serving.CRONUS:
            return cronus_rps(groups)
        case _:
            assert_never(serving)


def prefill_rps(groups: Iterable[Group]) -> float:
    """Whole prompts per second of all P."""
    return fsum(group.count / group.option.prefill_s for group in groups if group.option.role is Role.PREFILL)


def decode_rps(groups: Iterable[Group]) -> float:
    """Answers per second of all D, their prompts computed elsewhere."""
    return fsum(group.count / group.option.decode_s for group in groups if group.option.role is Role.DECODE)


def whole_rps(groups: Iterable[Group]) -> float:
    """Whole requests per second of all D."""
    return fsum(group.count / group.option.whole_s for group in groups if group.option.role is Role.DECODE)


def handed_rps(serving: Serving, groups: Sequence[Group]) -> float:
    """Prompts per second that P compute at `rate_rps`, in units of whole prompts."""
    return 0.0 if serving is Serving.AGGREGATED else min(prefill_rps(groups), decode_rps(groups))


def saved_share(option: Option) -> float:
    """Which share of a request's seconds a D is spared when P computes the prompt: 0 to 1."""
    return 1 - option.decode_s / option.whole_s


def cronus_rps(groups: Sequence[Group]) -> float:
    """Requests per second where P may compute any share of any prompt.

    Of n instances D of a type serve u requests/s whole and y whose prompts P computes: u·whole + y·decode <= n, all y
    together <= `prefill_rps`; wanted is the most u + y. As u = (n − y·decode)/whole, this is the sum of n/whole plus
    the most of sum y·(1 − decode/whole) with y <= n/decode: a fractional knapsack. So the prompts of that D go first
    whose `saved_share` is largest. (Requests of which P computes a share f count as f of y and 1 − f of u.)
    """
    left = prefill_rps(groups)
    gained = []
    for group in sorted(_decoding(groups), key=lambda group: -saved_share(group.option)):
        handed = min(left, group.count / group.option.decode_s)
        gained.append(handed * saved_share(group.option))
        left -= handed
    return whole_rps(groups) + fsum(gained)


def _decoding(groups: Iterable[Group]) -> Iterable[Group]:
    return (group for group in groups if group.option.role is Role.DECODE)


def ceilings(serving: Serving, options: Sequence[Option]) -> tuple[tuple[float, ...], ...]:
    """Linear functions of the counts of `options` whose least is `rate_rps`: for each, what one instance adds to it.

    Those of Cronus are the dual of the fractional knapsack: where a prompt computed by P is worth w requests, the rate
    is at most w·`prefill_rps` + sum n/whole + sum n/decode·max(0, saved − w), whatever w is; and it is the least of
    these over w = 0 and the `saved_share` of every D.
    """
    prefill = [1 / option.prefill_s if option.role is Role.PREFILL else 0.0 for option in options]
    decode = [1 / option.decode_s if option.role is Role.DECODE else 0.0 for option in options]
    whole = [1 / option.whole_s if option.role is Role.DECODE else 0.0 for option in options]
    match serving:
        case Serving.AGGREGATED:
            return (tuple(whole),)
        case Serving.DISAGGREGATED:
            return (tuple(prefill), tuple(decode))
        case Serving.CRONUS:
            saved = [saved_share(option) if option.role is Role.DECODE else 0.0 for option in options]
            speeds = list(zip(prefill, decode, whole, saved, strict=True))
            return tuple(tuple(w * p + a + d * max(0.0, s - w) for p, d, a, s in speeds) for w in sorted({0.0, *saved}))
        case _:
            assert_never(serving)
