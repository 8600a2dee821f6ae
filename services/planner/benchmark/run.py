"""All tables of `pdmesh bench planner`, one after the other, and their summary."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median

import msgspec

from common.clock import Clock
from services.planner.benchmark.agreement import random_rows, table_rows
from services.planner.benchmark.desk import Desk, Row
from services.planner.benchmark.mixed import mixed_rows
from services.planner.benchmark.oracle_best import best_tokens_per_s
from services.planner.benchmark.rates import rate_rows
from services.planner.benchmark.ratios import ratio_rows
from services.planner.benchmark.roles import role_rows
from services.planner.benchmark.speed import speed_rows
from services.planner.checks.aiconfigurator import asker
from services.planner.checks.oracle import MACHINES, oracle_rows
from services.planner.checks.tables import measured_rows
from services.planner.trials.evaluate import Effort
from services.simulator.hardware.catalogue import load_catalogue

_WHOLE, _QUICK = Effort(most_requests=3000, probes=4), Effort(most_requests=150, probes=3)


class PlannerBench(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and with what."""

    folder: Path
    """For plan files."""
    tables: Path | None
    """Folder of measured tables; None: without them."""
    aiconfigurator: Path | None
    """An interpreter that has it; None: without."""
    clock: Clock
    on_step: Callable[[str], None]
    quick: bool


def planner_rows(bench: PlannerBench) -> Iterator[Row]:
    """Every row, the short tables first. Raises PdmeshError."""
    catalogue = load_catalogue()
    desk = Desk(
        folder=bench.folder,
        catalogue=catalogue,
        effort=_QUICK if bench.quick else _WHOLE,
        on_step=bench.on_step,
    )
    if bench.tables is not None:
        bench.on_step("measured tables")
        yield from measured_rows(bench.tables, catalogue)
    if bench.aiconfigurator is not None:
        bench.on_step("asking aiconfigurator")
        machines = MACHINES[:1] if bench.quick else MACHINES
        yield from oracle_rows(
            asker(bench.aiconfigurator), lambda machine: best_tokens_per_s(desk, machine), catalogue, machines
        )
    # Before anything else has warmed or filled caches.
    yield from speed_rows(desk, bench.clock, quick=bench.quick)
    for rows in (role_rows, ratio_rows, table_rows, random_rows, rate_rows, mixed_rows):
        yield from rows(desk, quick=bench.quick)


def planner_summary(rows: Sequence[Row]) -> dict[str, float]:
    """The figures that goals are set for; those whose rows are not there are left out."""
    found: dict[str, float | None] = {
        "closed_form_error_of_random_clusters": _mean(rows, "random_cluster", "mean_error"),
        "closed_form_error_of_table": _mean(rows, "table", "mean_error"),
        "rank_correlation_of_table": _mean(rows, "table", "rank_correlation"),
        "same_best_share": _mean(rows, "random_cluster", "same_best"),
        "as_good_as_best_share": _mean(rows, "random_cluster", "as_good_as_best"),
        "same_best_aggregated_share": _mean(rows, "random_cluster", "aggregated_same_best"),
        "as_good_as_best_aggregated_share": _mean(rows, "random_cluster", "aggregated_as_good_as_best"),
        "worst_best_over_chosen": _most(rows, "random_cluster", "best_over_chosen"),
        "held_at_planned_rate_share": _mean(rows, "tightness", "within_limits"),
        "held_at_1.5_planned_rate_share": _mean(rows, "tightness", "over_within_limits"),
        "most_mixed_over_best_alone": _most(rows, "mixed", "mixed_over_best_alone_simulated"),
        "median_mixed_over_best_alone": _median(rows, "mixed", "mixed_over_best_alone_simulated"),
        "longest_search_s": _most(rows, "search", "search_s"),
        "median_oracle_prefill_ratio": _median(rows, "oracle", "ours_over_theirs", what="prefill"),
        "median_oracle_decode_ratio": _median(rows, "oracle", "ours_over_theirs", what="decode"),
        "median_oracle_serve_ratio": _median(rows, "oracle", "ours_over_theirs", what="serve"),
        "mean_fit_error_of_measured_devices": _mean(rows, "measured_device", "fit_error"),
        "mean_spec_error_of_measured_devices": _mean(rows, "measured_device", "spec_error"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _values(rows: Sequence[Row], kind: str, column: str, **where: str) -> list[float]:
    chosen = [row for row in rows if row["kind"] == kind and all(row[name] == value for name, value in where.items())]
    return [float(value) for row in chosen if isinstance(value := row[column], int | float)]


def _mean(rows: Sequence[Row], kind: str, column: str) -> float | None:
    values = _values(rows, kind, column)
    return fmean(values) if values else None


def _median(rows: Sequence[Row], kind: str, column: str, **where: str) -> float | None:
    values = _values(rows, kind, column, **where)
    return median(values) if values else None


def _most(rows: Sequence[Row], kind: str, column: str) -> float | None:
    return max(_values(rows, kind, column), default=None)
