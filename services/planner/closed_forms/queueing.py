"""How long requests wait for an instance, and how much it may be used so that they do not wait too long. Pure.

Arrivals are a Poisson process, and every instance has a queue of its own: a mesh that lets requests wait at the gateway
for whoever is free first waits less, and one whose arrivals come in bursts waits longer. Simulations show both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

MOST_UTILISATION: Final = 0.98
"""Without any limit: nearer to 1 the queue of an endless stream grows without bound."""
LATE_SHARE: Final = 0.01
"""Of the requests may be above a P99 limit."""
_HALVINGS: Final = 22

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Wait:
    """How long a request waits: not at all with 1 - `chance`, else exponentially with a mean of `mean_s`."""

    chance: float
    mean_s: float

    def beyond(self, seconds: Vector) -> Vector:
        """P(wait > each of `seconds`); 1 for negative ones."""
        return np.where(seconds < 0, 1.0, self.chance * _decay(seconds, self.mean_s))


NEVER_WAITS: Final = Wait(0.0, 0.0)
ALWAYS_WAITS: Final = Wait(1.0, float("inf"))


def wait_of(servers: float, utilisation: float, mean_s: float, squared_variation: float) -> Wait:
    """The wait for one of `servers` ≥ 1 that each serve one request at a time, in `mean_s` on average.

    P(wait) = ρ^(√(2(c + 1)) - 1) and mean wait = (1 + cv²)/2 · P(wait) · S / (c·(1 - ρ)): Sakasegawa's approximation
    (Annals of the Institute of Statistical Mathematics 29, 1977) of the M/M/c queue, with the factor of Allen and
    Cunneen for other service times.  For c = 1 it is the Pollaczek-Khinchine formula of the M/G/1 queue, exactly.  That
    the wait of those who wait is exponential is exact for M/M/c, and a usual approximation of tails elsewhere.
    """
    if utilisation >= 1:
        return ALWAYS_WAITS
    if utilisation <= 0:
        return NEVER_WAITS
    chance = utilisation ** (sqrt(2 * (servers + 1)) - 1)
    return Wait(chance, (1 + squared_variation) / 2 * mean_s / (servers * (1 - utilisation)))


def both_beyond(first: Wait, second: Wait, seconds: Vector) -> Vector:
    """P(sum of two independent waits > each of `seconds`); 1 for negative ones.

    Where both wait, the sum of exponentials of means a ≠ b has the tail (a·e^(-t/a) - b·e^(-t/b)) / (a - b).
    """
    if not (np.isfinite(first.mean_s) and np.isfinite(second.mean_s)):
        return np.ones_like(seconds)
    a, b = first.mean_s, second.mean_s
    if abs(a - b) < 1e-6 * max(a, b):
        b = a * (1 + 1e-6)
    tails = _decay(seconds, a), _decay(seconds, b)
    summed = tails[0] if a == b else (a * tails[0] - b * tails[1]) / (a - b)
    p, q = first.chance, second.chance
    return np.where(seconds < 0, 1.0, p * (1 - q) * tails[0] + q * (1 - p) * tails[1] + p * q * summed)


def most_utilisation(holds: Callable[[float], bool]) -> float | None:
    """The largest share in (0, MOST_UTILISATION] for which `holds`, which fails above some share; None: for none.

    By bisection, to less than 1e-6.
    """
    if holds(MOST_UTILISATION):
        return MOST_UTILISATION
    low, high = 0.0, MOST_UTILISATION
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low or None


def _decay(seconds: Vector, mean_s: float) -> Vector:
    """e^(-t / mean) of what is not negative; with a mean of 0 nothing is left, with an infinite one all."""
    if mean_s == 0:
        return np.zeros_like(seconds)
    return np.exp(-np.maximum(seconds, 0.0) / mean_s)
