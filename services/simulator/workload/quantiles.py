"""Lengths by their quantiles."""

from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.simulator.workload.errors import WorkloadError

FRACTIONS = (0, 0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.93, 0.95, 0.97, 0.99, 0.999, 1)
"""Where quantiles are given, from the smallest length to the largest; denser where length distributions are steep."""


class QuantileTable(msgspec.Struct, frozen=True):
    """A distribution of lengths: its quantiles at FRACTIONS, in tokens, the logarithm linear between them.

    Between fractions a < b with quantiles A and B, the quantile at u is A · (B / A) ^ ((u - a) / (b - a)).
    """

    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(FRACTIONS):
            raise WorkloadError(f"{len(self.tokens)} quantiles {self.tokens!r}; give one for each of {FRACTIONS}")
        if self.tokens[0] < 1 or any(low > high for low, high in pairwise(self.tokens)):
            raise WorkloadError(f"the quantiles {self.tokens!r} must not fall, and start at 1 token or more")

    def at(self, fractions: NDArray[np.float64]) -> NDArray[np.int64]:
        """The lengths at fractions in [0, 1], rounded to whole tokens: `[n]` to `[n]`."""
        return np.rint(np.exp(np.interp(fractions, FRACTIONS, np.log(self.tokens)))).astype(np.int64)
