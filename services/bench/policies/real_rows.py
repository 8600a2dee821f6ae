"""What the systems did on this machine, beside what the simulator says of them."""

from collections.abc import Mapping, Sequence

import msgspec

from services.bench.policies.predicted import Bounds
from services.bench.policies.real import Served
from services.bench.policies.systems import Devices, System
from services.bench.report import Row, Where
from services.simulator.runs.report import Report
from services.simulator.workload.requests import Workload

COLUMNS = ("throughput_rps", "ttft_mean_s", "ttft_p99_s", "tbt_mean_s", "tbt_p99_s")
MEANS = ("throughput_rps", "ttft_mean_s", "tbt_mean_s")
OFFLINE = "all_at_once"


class RealFacts(msgspec.Struct, frozen=True):
    """What the rows of one run have in common."""

    devices: Devices
    loads: Mapping[str, Workload]
    rates: Mapping[str, float | None]
    dp_weight: float
    bounds: Bounds


def real_rows(served: Sequence[Served], predicted: Mapping[tuple[System, str], Report], facts: RealFacts) -> list[Row]:
    """A row for each system and load: medians over the rounds, and predicted_* beside them."""
    reference = {item.load: item.texts for item in served if item.system is System.CRONUS}
    return [_row(item, predicted[item.system, item.load], facts, reference[item.load]) for item in served]


def _row(item: Served, report: Report, facts: RealFacts, reference: Sequence[str]) -> Row:
    devices = facts.devices
    guesses = predictions(report)
    columns: dict[str, float] = {}
    for column in COLUMNS:
        columns |= item.measured(column).columns(column)
        columns[f"predicted_{column}"] = guesses[column]
    same = sum(mine == other for mine, other in zip(item.texts, reference, strict=True))
    return {
        "kind": "policy",
        "where": Where.EMULATED,
        "repeats": len(item.figures),
        "pair": f"one core + one core emulated {devices.slowdown:g} x slower",
        "model": devices.model,
        "dtype": devices.dtype,
        "system": item.system.value,
        "dp_weight": facts.dp_weight if item.system is System.DP else None,
        "settings": f"budget {devices.budget}, batch {devices.max_batch}",
        "load": "all_at_once" if facts.rates[item.load] is None else "rate",
        "rate_rps": facts.rates[item.load],
        "requests": len(facts.loads[item.load].requests),
        "bound_rps": facts.bounds.of(item.system),
        "same_answers_as_cronus": same / len(reference),
        **columns,
    }


def predictions(report: Report) -> dict[str, float]:
    """A simulated report in the columns of a real one."""
    return {
        "throughput_rps": report.throughput_rps,
        "ttft_mean_s": report.ttft.mean,
        "ttft_p99_s": report.ttft.p99,
        "tbt_mean_s": report.tbt.mean,
        "tbt_p99_s": report.tbt.p99,
    }


def real_summary(rows: Sequence[Row]) -> dict[str, float]:
    """The ratios that are aimed at, and the mean errors of the predictions."""
    offline = {row["system"]: row for row in rows if row["load"] == OFFLINE}
    summary: dict[str, float] = {}
    rivals = [system for system in System if system is not System.CRONUS]
    throughput = {system: _number(row, "throughput_rps") for system, row in offline.items()}
    for rival in rivals:
        summary[f"throughput_cronus_over_{rival}"] = throughput["cronus"] / throughput[rival.value]
    summary["throughput_cronus_over_best_rival"] = throughput["cronus"] / max(throughput[r.value] for r in rivals)
    timed = {row["system"]: row for row in rows if row["load"] != OFFLINE}
    for rival in rivals:
        for column in ("ttft_p99_s", "tbt_p99_s"):
            if rival.value in timed:
                ratio = _number(timed["cronus"], column) / _number(timed[rival.value], column)
                summary[f"{column.removesuffix('_s')}_cronus_over_{rival}"] = ratio
    for column in COLUMNS:
        errors = [abs(_number(row, f"predicted_{column}") / _number(row, column) - 1.0) for row in rows]
        summary[f"prediction_error_{column}"] = sum(errors) / len(errors)
    summary["prediction_error_of_means"] = sum(summary[f"prediction_error_{column}"] for column in MEANS) / len(MEANS)
    return summary


def _number(row: Row, column: str) -> float:
    value = row[column]
    assert isinstance(value, int | float)
    return float(value)
