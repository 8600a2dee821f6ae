"""A device that is slower than it is: computing is stretched by waiting."""

from collections.abc import Callable

from common.clock import Clock


class Slowdown:
    """Makes what is computed take `factor` ≥ 1 times as long: an emulation.

    It waits whenever something of the work is about to be seen outside, a layer's KV or a token, and at the end; so the
    outside sees everything at the pace of the emulated device.  For one thread.
    """

    def __init__(self, factor: float, clock: Clock, sleep: Callable[[float], None]) -> None:
        self._factor = factor
        self._clock = clock
        self._sleep = sleep
        self._computing_since: float | None = None

    def run(self, work: Callable[[], object]) -> float:
        """Do `work`, which may call `catch_up`; the seconds that it took, waiting included."""
        began = self._computing_since = self._clock.now()
        try:
            work()
            self.catch_up()
        finally:
            self._computing_since = None
        return self._clock.now() - began

    def catch_up(self) -> None:
        """Wait for what was computed since the last time; nothing outside `run`."""
        if self._computing_since is None or self._factor <= 1.0:
            return
        self._sleep((self._factor - 1.0) * (self._clock.now() - self._computing_since))
        self._computing_since = self._clock.now()
