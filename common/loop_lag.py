"""How late an event loop is: whatever waits for it, a token or a heartbeat, waits so long."""

import asyncio
from collections import deque
from collections.abc import Iterable
from math import ceil
from typing import Final

import msgspec

from common.clock import Clock

INTERVAL_S: Final = 0.01
KEPT: Final = 1000
"""Wake-ups that the figures speak of: the last ten seconds of a loop that is in time."""


class LoopLagFigures(msgspec.Struct, frozen=True):
    """Seconds by which a loop's timers were late, over its last wake-ups; zero before the first."""

    p99_s: float = 0.0
    max_s: float = 0.0


def figures_of(lags_s: Iterable[float]) -> LoopLagFigures:
    """The 99th percentile (nearest rank) and the largest."""
    ordered = sorted(lags_s)
    if not ordered:
        return LoopLagFigures()
    return LoopLagFigures(ordered[ceil(0.99 * len(ordered)) - 1], ordered[-1])


class LoopLag:
    """Wakes up every `interval_s` and keeps how late it was, `kept` times. Use: start on the loop, then stop.

    A plain timer and not a task that sleeps: its callback is the first thing that a loop does in a round, so that it
    tells how long the round before took. uvloop's timers have a resolution of a millisecond, and so has this.
    """

    def __init__(self, clock: Clock, interval_s: float = INTERVAL_S, kept: int = KEPT) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._lags_s: deque[float] = deque(maxlen=kept)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch the running loop, until `stop`."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._wake, loop, self._clock.now() + self._interval_s)

    def stop(self) -> None:
        """Watch no more; what was seen is kept. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def figures(self) -> LoopLagFigures:
        """Of the last wake-ups; some 0.1 ms of work."""
        return figures_of(self._lags_s)

    def _wake(self, loop: asyncio.AbstractEventLoop, due_at: float) -> None:
        now = self._clock.now()
        self._lags_s.append(max(0.0, now - due_at))
        self._timer = loop.call_later(self._interval_s, self._wake, loop, now + self._interval_s)
