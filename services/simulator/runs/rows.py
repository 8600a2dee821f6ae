"""What runs found, as the flat rows that every benchmark writes. Times are in seconds."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from common.messages.control import Role
from services.simulator.cluster.file import ClusterFile
from services.simulator.runs.report import InstanceUse, Report, Spread
from services.simulator.runs.sweep import Tuned
from services.simulator.runs.system import System

Row = dict[str, str | int | float | bool | None]
_ORIGIN: Row = {"where": "simulated", "repeats": 1}
"""One repeat, and no least and most: the same run always finds the same."""


class Run(msgspec.Struct, frozen=True):
    """One system under one stream of requests."""

    system: System
    rate: float | None
    """Requests per second that arrive; None where another word of the report says how they do."""
    report: Report


def run_row(file: ClusterFile, run: Run) -> Row:
    """The row of kind "run"."""
    report, system = run.report, run.system
    return {
        "kind": "run",
        **_ORIGIN,
        "system": system.name,
        "policy": system.policy,
        **_settings(system),
        "model": file.model.spec.name,
        "dtype": file.keys.dtype,
        "link_gbit_per_s": file.keys.link.gbit_per_s,
        "workload": report.workload,
        "arrivals": report.arrivals,
        "rate_rps": run.rate,
        "requests": report.requests,
        "makespan_s": report.makespan_s,
        "throughput_rps": report.throughput_rps,
        "output_tokens_per_s": report.output_tokens_per_s,
        "tokens_per_s": report.tokens_per_s,
        **_spread("ttft", report.ttft),
        **_spread("tbt", report.tbt),
        **_spread("tpot", report.tpot),
        "split_share": report.split_share,
        "mean_prediction_error": report.mean_prediction_error,
        "preemptions": sum(use.preemptions for use in report.instances),
    }


def instance_rows(file: ClusterFile, run: Run) -> Iterator[Row]:
    """A row of kind "instance" for each instance of the run."""
    specs = {spec.name: spec for spec in run.system.cluster.instances}
    for use in run.report.instances:
        facts = file.facts[run.system.entries[use.name]]
        yield {
            "kind": "instance",
            **_ORIGIN,
            "system": run.system.name,
            "rate_rps": run.rate,
            "instance": use.name,
            "device": facts.device,
            "costs": facts.origin.value,
            "costs_worst_error": facts.worst_fit,
            "kv_tokens": specs[use.name].kv_tokens,
            "weight": specs[use.name].weight,
            **_use(use),
        }


def trial_rows(tuned: Tuned) -> Iterator[Row]:
    """A row of kind "tuning" for each value that was tried."""
    for trial in tuned.trials:
        row = msgspec.structs.asdict(trial)
        yield {"kind": "tuning", **_ORIGIN, "system": tuned.system.name, "policy": tuned.system.policy, **row}


def summary_of(runs: Sequence[Run]) -> dict[str, float]:
    """The first system over each other under the same arrivals: of throughput, of TTFT P99 and of TBT P99."""
    return dict(_ratios(runs))


def _ratios(runs: Iterable[Run]) -> Iterator[tuple[str, float]]:
    by_rate: dict[float | None, list[Run]] = {}
    for run in runs:
        by_rate.setdefault(run.rate, []).append(run)
    for rate, (ours, *others) in by_rate.items():
        at = "" if rate is None else f"_at_{rate:g}"
        for other in others:
            pair = f"{ours.system.name}_over_{other.system.name}"
            for quantity, mine, its in (
                ("throughput", ours.report.throughput_rps, other.report.throughput_rps),
                ("ttft_p99", ours.report.ttft.p99, other.report.ttft.p99),
                ("tbt_p99", ours.report.tbt.p99, other.report.tbt.p99),
            ):
                if its > 0:
                    yield f"{quantity}_{pair}{at}", mine / its


def _settings(system: System) -> Row:
    """The options that the system's policy reads."""
    weights = (f"{spec.name}={spec.weight:.4g}" for spec in system.cluster.instances if spec.weight is not None)
    uses_prefill = any(spec.role is Role.PREFILL for spec in system.cluster.instances)
    return {
        "split": str(system.split) if system.policy == "fixed" else None,
        "balance": system.balance if system.policy == "cronus" else None,
        "weights": " ".join(weights) or "by costs" if system.policy == "dp" else None,
        "prefill_slots": system.prefill_slots if uses_prefill else None,
        "decode_batches": system.decode_batches,
    }


def _spread(name: str, spread: Spread) -> Row:
    return {f"{name}_{which}_s": value for which, value in msgspec.structs.asdict(spread).items()}


def _use(use: InstanceUse) -> Row:
    row = msgspec.structs.asdict(use)
    row.pop("name")
    return {**row, "role": use.role.value}
