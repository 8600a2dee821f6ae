"""The gaps between tokens of a whole run: millions, kept as a histogram."""

import math
from collections import defaultdict

_BINS_PER_E = 2000
"""Bins per factor of e: a gap is right to one part in 4,000."""
_SAME = 1.0 + 0.2 / _BINS_PER_E
"""Gaps of a run that differ by less are put into one bin: another part in 20,000."""


class GapHistogram:
    """Counts, sum and largest are exact; quantiles are right to 0.03 %. Implements GapRecorder."""

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self.max_s = 0.0
        self._bins: defaultdict[int, int] = defaultdict(int)

    def record_gap(self, seconds: float, count: int) -> None:
        """See GapRecorder."""
        self.count += count
        self.total_s += seconds * count
        self.max_s = max(self.max_s, seconds)
        self._bins[_bin(seconds)] += count

    def record_run(self, first: float, increment: float, steps: int, count: int) -> None:
        """See GapRecorder."""
        last = first + increment * (steps - 1)
        self.count += count * steps
        self.total_s += count * steps * (first + last) / 2
        self.max_s = max(self.max_s, last)
        self._spread(first, increment, steps, count)

    def mean(self) -> float:
        """Seconds; 0 without gaps."""
        return self.total_s / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The gap that `share` of all gaps do not exceed, in seconds; 0 without gaps."""
        wanted, seen = share * self.count, 0
        for number in sorted(self._bins):
            seen += self._bins[number]
            if seen >= wanted:
                return math.exp((number + 0.5) / _BINS_PER_E)
        return 0.0

    def cumulative(self, points: int = 200) -> list[tuple[float, float]]:
        """(seconds, share of gaps not longer) at about `points` places, for a plot."""
        numbers = sorted(self._bins)
        stride = max(1, len(numbers) // points)
        seen = 0
        curve: list[tuple[float, float]] = []
        for index, number in enumerate(numbers):
            seen += self._bins[number]
            if index % stride == 0 or index == len(numbers) - 1:
                curve.append((math.exp((number + 0.5) / _BINS_PER_E), seen / self.count))
        return curve

    def _spread(self, first: float, increment: float, steps: int, count: int) -> None:
        """Into bins, in as many pieces as the gaps differ by a bin."""
        while steps > 0:
            room = steps if increment <= 0 else int(first * (_SAME - 1.0) / increment) + 1
            piece = min(steps, room)
            self._bins[_bin(first + increment * (piece - 1) / 2)] += count * piece
            first += increment * piece
            steps -= piece


def _bin(seconds: float) -> int:
    return math.floor(math.log(max(seconds, 1e-12)) * _BINS_PER_E)
