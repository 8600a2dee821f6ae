"""What one run of a client against one system gave."""

from collections.abc import Sequence

import msgspec
import numpy as np


class Sample(msgspec.Struct, frozen=True):
    """One run. Latencies are those of whole answers, from the first byte sent to the last one received."""

    answers: int
    answers_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_answer: float = 0.0
    """CPU time of the system's own process, its threads included, over the answers. Zero where it is not known."""


def sample_of(latencies_s: Sequence[float], seconds: float) -> Sample:
    """At least one answer."""
    latencies = np.asarray(latencies_s)
    p50_s, p99_s = np.quantile(latencies, (0.5, 0.99))
    return Sample(len(latencies), len(latencies) / seconds, float(p50_s) * 1e3, float(p99_s) * 1e3)
