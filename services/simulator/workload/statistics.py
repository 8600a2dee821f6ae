"""A workload in a few numbers."""

from collections.abc import Iterable
from itertools import pairwise

import msgspec
import numpy as np

from services.simulator.workload.requests import Workload


class LengthStatistics(msgspec.Struct, frozen=True):
    """Tokens of all prompts, or of all outputs. Percentiles are interpolated linearly, as numpy does."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: int
    total: int


class WorkloadStatistics(msgspec.Struct, frozen=True):
    """What a report says about a workload."""

    num_requests: int
    prompt: LengthStatistics
    output: LengthStatistics
    span_s: float
    """From the first arrival to the last."""
    requests_per_s: float | None
    """The inverse of the mean gap between arrivals; None where all come at once."""
    gap_cv: float | None
    """Standard deviation over mean of the gaps: 1 for a Poisson process, 0 for even gaps; None with the rate."""


def statistics(workload: Workload) -> WorkloadStatistics:
    """Lengths and arrivals of a workload."""
    requests = workload.requests
    gaps = np.array([after.arrival_s - before.arrival_s for before, after in pairwise(requests)])
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    return WorkloadStatistics(
        num_requests=len(requests),
        prompt=_lengths(request.prompt_tokens for request in requests),
        output=_lengths(request.output_tokens for request in requests),
        span_s=span_s,
        requests_per_s=len(gaps) / span_s if span_s > 0 else None,
        gap_cv=float(gaps.std() / gaps.mean()) if span_s > 0 else None,
    )


def _lengths(tokens: Iterable[int]) -> LengthStatistics:
    values = np.array(list(tokens))
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return LengthStatistics(float(values.mean()), p50, p90, p99, int(values.max()), int(values.sum()))
