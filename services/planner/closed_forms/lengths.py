"""What the closed forms need of a workload's lengths. Pure."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.simulator.workload.requests import Workload

_MOST_PARTS: Final = 500

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Distribution:
    """Lengths with their shares, which sum to 1: `[n]` each, the lengths rising."""

    tokens: Vector
    shares: Vector

    @property
    def mean(self) -> float:
        """E[X]."""
        return self.average(self.tokens)

    @property
    def second_moment(self) -> float:
        """E[X²]."""
        return self.average(self.tokens**2)

    def grouped(self, most: int) -> "Distribution":
        """At most so many groups of nearly equal shares, each at its mean; itself where it has no more lengths."""
        if len(self.tokens) <= most:
            return self
        middles = np.cumsum(self.shares) - self.shares / 2
        group = np.unique(np.minimum((middles * most).astype(int), most - 1), return_inverse=True)[1]
        shares: Vector = np.bincount(group, self.shares).astype(float)
        return Distribution(np.bincount(group, self.shares * self.tokens) / shares, shares)

    def average(self, values: Vector) -> float:
        """E[f(X)], of the values f takes at `tokens`: `[n]`."""
        return float(values @ self.shares)

    def averages(self, values: Vector) -> Vector:
        """The same of several functions: `[m, n]` to `[m]`."""
        found: Vector = values @ self.shares
        return found

    def p99(self, values: Vector) -> float:
        """The least of `values`, of f at `tokens`, that 99 % of the requests have at most: `[n]`."""
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(self.shares[order])
        return float(values[order][np.searchsorted(reached, 0.99 - 1e-9)])


@dataclass(frozen=True, eq=False)
class Lengths:
    """Prompts, outputs, and what both are together."""

    prompts: Distribution
    outputs: Distribution
    context: float
    """Mean tokens that a decoding sequence holds, over all the steps of all requests: long outputs count for longer.

    E[L·O] / E[O] + E[O²] / (2·E[O]) for prompts L and outputs O; where all are alike L + O/2, as in Xiong et al.
    """
    held_variation: float
    """Squared coefficient of variation of what requests hold, L + O/2 each."""
    longest: int
    """Most tokens of prompt and output together."""
    longest_prompt: int

    @property
    def total(self) -> float:
        """Mean tokens of prompt and output."""
        return self.prompts.mean + self.outputs.mean


def lengths_of(workload: Workload) -> Lengths:
    """The lengths of all requests. More than 500 different ones are put into so many groups of nearly equal numbers,
    each by its mean: means stay exact, and percentiles nearly so.
    """
    prompts = np.array([request.prompt_tokens for request in workload.requests], dtype=float)
    outputs = np.array([request.output_tokens for request in workload.requests], dtype=float)
    held = prompts + outputs / 2
    return Lengths(
        prompts=_distribution(prompts),
        outputs=_distribution(outputs),
        context=float((held * outputs).sum() / outputs.sum()),
        held_variation=float(held.var() / held.mean() ** 2),
        longest=int((prompts + outputs).max()),
        longest_prompt=int(prompts.max()),
    )


def _distribution(values: Vector) -> Distribution:
    tokens, counts = np.unique(values, return_counts=True)
    return Distribution(tokens, counts / len(values)).grouped(_MOST_PARTS)
