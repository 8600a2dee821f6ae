"""A device that is slower than it is: computing is stretched by waiting."""

from collections.abc import Callable

from common.clock import Clock

LEAST_WAIT_S = 0.02


class Slowdown:
    """Makes what is computed take `factor` ≥ 1 times as long: an emulation.

    It waits when something of the work is about to be seen outside, a layer's KV or a token, and at the end; so the
    outside sees everything at the pace of the emulated device.  What is owed may grow to LEAST_WAIT_S before: waking up
    takes time too, which the emulated device would not need thirty times in a step.  For one thread.
    """

    def __init__(self, factor: float, clock: Clock, sleep: Callable[[float], None]) -> None:
        self._factor = factor
        self._clock = clock
        self._sleep = sleep
        self._computing_since: float | None = None
        self._owed_s = 0.0

    def run(self, work: Callable[[], object]) -> float:
        """Do `work`, which may call `catch_up`; the seconds that it took, waiting included."""
        began = self._computing_since = self._clock.now()
        try:
            work()
            self.catch_up(is_end=True)
        finally:
            self._computing_since = None
            self._owed_s = 0.0
        return self._clock.now() - began

    def catch_up(self, *, is_end: bool = False) -> None:
        """Wait for what was computed since the last time, once that is worth it; nothing outside `run`."""
        if self._computing_since is None or self._factor <= 1.0:
            return
        now = self._clock.now()
        self._owed_s += (self._factor - 1.0) * (now - self._computing_since)
        self._computing_since = now
        if self._owed_s >= LEAST_WAIT_S or is_end:
            self._sleep(max(0.0, self._owed_s))
            # What the sleep took beyond what was asked is paid, not computed.
            self._computing_since = self._clock.now()
            self._owed_s = min(0.0, self._owed_s - (self._computing_since - now))
