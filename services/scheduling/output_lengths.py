"""How long an answer will be: predictors of the number of output tokens. Pure state, no clock."""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import deque


class OutputLengths(ABC):
    """Learns from answers that ended."""

    @abstractmethod
    def observe(self, tokens: int) -> None:
        """An answer ended after so many tokens."""

    @abstractmethod
    def expected(self) -> float | None:
        """Tokens that an answer is expected to have; None before the first has ended."""


class RunningQuantile(OutputLengths):
    """The quantile of the last `window` answers, exact; O(log window) comparisons to learn one.

    The mean of so heavy a tail as output lengths have moves with single answers; the median does not, but says too
    little about memory.  0.6 is about the mean of the public chat traces.
    """

    def __init__(self, quantile: float = 0.6, window: int = 512) -> None:
        if not 0.0 <= quantile <= 1.0 or window < 1:
            raise ValueError(f"quantile {quantile!r} over {window!r} answers; it is in [0, 1], over at least one")
        self._quantile = quantile
        self._window = window
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def observe(self, tokens: int) -> None:
        """See OutputLengths."""
        if len(self._recent) == self._window:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._recent.append(tokens)
        insort(self._sorted, tokens)

    def expected(self) -> float | None:
        """See OutputLengths."""
        if not self._sorted:
            return None
        return float(self._sorted[min(len(self._sorted) - 1, int(self._quantile * len(self._sorted)))])
