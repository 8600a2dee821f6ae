"""Rates of closed loops, and what clients saw of answers (pure)."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from services.bench.engine.errors import BenchError
from services.bench.load.stream import StreamTimes


class Limits(msgspec.Struct, frozen=True):
    """What an answer may take to count for goodput."""

    ttft_s: float
    tpot_s: float

    def hold(self, answer: StreamTimes) -> bool:
        """Whether this answer came in time."""
        return answer.ttft_s <= self.ttft_s and tpot_s(answer) <= self.tpot_s


def steady_rate(ended_at: Sequence[float], clients: int) -> float:
    """Requests per second of a closed loop while every client was busy; `ended_at` in order.

    With N requests and C clients the end of request N - C lets the last one be asked, so that until then nobody is
    idle; the first C ends are left out, when the stages fill: (N - 2C) / (t[N - C] - t[C]), t[k] the k-th end.
    Raises BenchError where nothing is left.
    """
    counted = len(ended_at) - 2 * clients
    seconds = ended_at[-clients - 1] - ended_at[clients - 1]
    if counted < 1 or seconds <= 0.0:
        raise BenchError(
            f"of {len(ended_at)} requests of {clients} clients {counted} are left in {seconds:.3g} s; give more"
        )
    return counted / seconds


def tpot_s(answer: StreamTimes) -> float:
    """The mean gap between tokens; 0 for an answer of one."""
    return (answer.last_at - answer.events_at[0]) / max(1, answer.tokens - 1)


def latencies(answers: Sequence[StreamTimes]) -> dict[str, float]:
    """Mean, p50 and p99 in seconds: TTFT and TPOT over the answers, TBT over all gaps of all answers."""
    samples: Mapping[str, list[float]] = {
        "ttft": [answer.ttft_s for answer in answers],
        "tbt": [gap for answer in answers for gap in answer.gaps()],
        "tpot": [tpot_s(answer) for answer in answers],
    }
    found: dict[str, float] = {}
    for name, values in samples.items():
        found[f"{name}_mean_s"] = float(np.mean(values))
        found[f"{name}_p50_s"] = float(np.quantile(values, 0.5))
        found[f"{name}_p99_s"] = float(np.quantile(values, 0.99))
    return found


def within(answers: Sequence[StreamTimes], limits: Limits) -> float:
    """The share of the answers that came in time."""
    return sum(map(limits.hold, answers)) / len(answers)
