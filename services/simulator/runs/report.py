"""What a simulation found, in figures."""

from collections.abc import Sequence

import msgspec
import numpy as np

from common.ids import InstanceId
from common.messages.control import Role
from services.simulator.gaps import GapHistogram
from services.simulator.records import RequestRecord
from services.simulator.workers import SimulatedPrefill, SimulatedWorker


class Spread(msgspec.Struct, frozen=True):
    """Seconds: mean and quantiles of one quantity."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class InstanceUse(msgspec.Struct, frozen=True):
    """What one instance did."""

    name: str
    role: Role
    requests: int
    busy: float
    """Share of the makespan in which it computed."""
    steps: int
    prompt_tokens: int
    output_tokens: int
    preemptions: int
    last_finish_s: float
    """When the last request that it took part in had ended."""
    link_busy: float
    """Share of the makespan in which its link was occupied; 0 for decode."""


class Report(msgspec.Struct, frozen=True):
    """One run. TTFT is from arrival to first token; TBT is over all gaps between tokens of one request; TPOT is the
    mean gap of each request; throughput is over the makespan, from the first arrival to the last token.
    """

    policy: str
    workload: str
    arrivals: str | None
    requests: int
    makespan_s: float
    throughput_rps: float
    output_tokens_per_s: float
    tokens_per_s: float
    """Prompt and output tokens."""
    ttft: Spread
    tbt: Spread
    tpot: Spread
    split_share: float
    """Prompt tokens computed at P over all, as a mean over the requests."""
    mean_prediction_error: float | None
    """|predicted - simulated| / simulated of the time from placing to first token, a mean; None: nothing predicted."""
    instances: tuple[InstanceUse, ...]
    ttft_curve: tuple[tuple[float, float], ...] = ()
    """(seconds, share of the requests whose first token took no longer), at up to 200 places."""
    tbt_curve: tuple[tuple[float, float], ...] = ()
    """The same of the gaps between tokens."""


def make_report(
    policy: str,
    workload: str,
    arrivals: str | None,
    records: Sequence[RequestRecord],
    gaps: GapHistogram,
    workers: Sequence[SimulatedWorker],
) -> Report:
    """The figures of a run that has ended."""
    arrived = np.array([record.arrived_at for record in records])
    first = np.array([record.first_token_at for record in records], dtype=float)
    finished = np.array([record.finished_at for record in records], dtype=float)
    prompts = np.array([record.prompt_tokens for record in records])
    outputs = np.array([record.output_tokens for record in records])
    splits = np.array([record.split for record in records])
    makespan = float(finished.max() - arrived.min())
    several = outputs > 1
    tpot = (finished - first)[several] / (outputs[several] - 1)
    return Report(
        policy=policy,
        workload=workload,
        arrivals=arrivals,
        requests=len(records),
        makespan_s=makespan,
        throughput_rps=len(records) / makespan,
        output_tokens_per_s=float(outputs.sum()) / makespan,
        tokens_per_s=float(outputs.sum() + prompts.sum()) / makespan,
        ttft=spread_of(first - arrived),
        tbt=Spread(gaps.mean(), gaps.quantile(0.5), gaps.quantile(0.9), gaps.quantile(0.99), gaps.max_s),
        tpot=spread_of(tpot),
        split_share=float((splits / prompts).mean()),
        mean_prediction_error=_prediction_error(records),
        instances=_uses(workers, records, makespan),
        ttft_curve=curve_of(first - arrived),
        tbt_curve=tuple(gaps.cumulative()),
    )


def spread_of(values: "np.typing.NDArray[np.float64]") -> Spread:
    """Mean and quantiles; zeros for no values."""
    if not len(values):
        return Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = (float(value) for value in np.quantile(values, (0.5, 0.9, 0.99)))
    return Spread(float(values.mean()), p50, p90, p99, float(values.max()))


def curve_of(values: "np.typing.NDArray[np.float64]", points: int = 200) -> tuple[tuple[float, float], ...]:
    """(value, share of the values not above it) at up to `points` places, the largest value among them."""
    count = len(values)
    places = np.unique(np.linspace(0, count - 1, min(points, count)).round().astype(int))
    ordered = np.sort(values)
    return tuple((float(ordered[place]), (int(place) + 1) / count) for place in places)


def _prediction_error(records: Sequence[RequestRecord]) -> float | None:
    errors = [
        abs(record.predicted_first_token_s / (record.first_token_at - record.placed_at) - 1.0)
        for record in records
        if record.predicted_first_token_s is not None
        and record.first_token_at is not None
        and record.placed_at is not None
        and record.first_token_at > record.placed_at
    ]
    return float(np.mean(errors)) if errors else None


def _uses(
    workers: Sequence[SimulatedWorker], records: Sequence[RequestRecord], makespan: float
) -> tuple[InstanceUse, ...]:
    finishes: dict[InstanceId, list[float]] = {worker.name: [] for worker in workers}
    for record in records:
        for name in (record.prefill, record.decode):
            if name is not None and record.finished_at is not None:
                finishes[name].append(record.finished_at)
    return tuple(_use(worker, finishes[worker.name], makespan) for worker in workers)


def _use(worker: SimulatedWorker, finishes: list[float], makespan: float) -> InstanceUse:
    counters = worker.engine.counters
    return InstanceUse(
        name=worker.name,
        role=worker.spec.role,
        requests=len(finishes),
        busy=counters.busy_s / makespan,
        steps=counters.steps,
        prompt_tokens=counters.prompt_tokens,
        output_tokens=counters.output_tokens,
        preemptions=counters.preemptions,
        last_finish_s=max(finishes, default=0.0),
        link_busy=worker.link.busy_s / makespan if isinstance(worker, SimulatedPrefill) else 0.0,
    )
