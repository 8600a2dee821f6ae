"""Time as an argument: services take a `Clock`, tests and the simulator set it by hand."""

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in seconds; its zero means nothing."""

    def now(self) -> float:
        """Seconds since an arbitrary instant, never going back."""
        ...


class SystemClock:
    """The machine's monotonic clock. Only composition roots construct it."""

    def now(self) -> float:
        """Seconds of the operating system's monotonic clock."""
        return time.monotonic()  # noqa: TID251 - the one place that owns it


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """The time last set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (never back)."""
        if seconds < 0:
            raise ValueError(f"time goes forward only, not by {seconds!r} s")
        self._now_s += seconds
