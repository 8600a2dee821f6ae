"""What the clients of two instances saw: rates while both were full, makespans, and when each was done."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from services.bench.load.stream import LoadError, StreamTimes

_LEAST_ANSWERS: Final = 6


class Rates(msgspec.Struct, frozen=True):
    """Answers per second of two instances that work at the same time."""

    fast: float
    slow: float

    @property
    def ceiling(self) -> float:
        """mean(c) / min(c): the most over round robin, which ends when the slowest instance has served its share."""
        return (self.fast + self.slow) / 2 / min(self.fast, self.slow)


class Dealt(msgspec.Struct, frozen=True):
    """One run of a policy."""

    makespan_s: float
    """From the first asking to the last event."""
    requests: Mapping[str, int]
    """By instance."""
    finish_spread: float
    """(last finish - first finish) / makespan, of the instances: 0 where all end together."""


def co_running(fast: Sequence[StreamTimes], slow: Sequence[StreamTimes]) -> Rates:
    """The rates of two instances that each had a load of equal requests at the same time, while both were full.

    That is from the first whole answer of both on, when their batches are filled, to the first token of the last
    answer of either: from then on nothing waits there, and its batch shrinks.
    Raises LoadError where that time is too short.
    """
    begin = max(min(answer.last_at for answer in answers) for answers in (fast, slow))
    end = min(max(answer.events_at[0] for answer in answers) for answers in (fast, slow))
    return Rates(*(_rate(answers, begin, end) for answers in (fast, slow)))


def dealt(answers: Sequence[StreamTimes]) -> Dealt:
    """What became of a run; at least one answer."""
    began = min(answer.asked_at for answer in answers)
    finishes: dict[str, list[float]] = {}
    for answer in answers:
        finishes.setdefault(decode_instance(answer.placement), []).append(answer.last_at)
    lasts = [max(times) for times in finishes.values()]
    makespan = max(lasts) - began
    # An instance that got nothing was done at once.
    spread = (max(lasts) - min(lasts)) / makespan if len(lasts) > 1 else 1.0
    return Dealt(makespan, {name: len(times) for name, times in finishes.items()}, spread)


def decode_instance(placement: str) -> str:
    """The D that a header `x-pdmesh-placement` names. Raises LoadError."""
    fields = dict(part.strip().partition("=")[::2] for part in placement.split(";"))
    if "decode" not in fields:
        raise LoadError(f"the placement {placement!r} names no decode instance")
    return fields["decode"]


def _rate(answers: Sequence[StreamTimes], begin: float, end: float) -> float:
    """Answers per second: the slope of a straight line through the tokens counted over time, over those of an answer.

    Sequences of one batch come and go in waves, so that a count between two moments would depend on where in a wave
    these are.
    """
    seen = np.array(sorted(at for answer in answers for at in answer.events_at if begin < at <= end))
    per_answer = sum(len(answer.events_at) for answer in answers) / len(answers)
    if len(seen) < _LEAST_ANSWERS * per_answer:
        raise LoadError(
            f"while both instances were full, {len(seen) / per_answer:.1f} answers came from one of them: too few to "
            f"know its rate, which takes {_LEAST_ANSWERS}; give more requests"
        )
    return float(np.polyfit(seen - seen[0], np.arange(len(seen)), 1)[0]) / per_answer
