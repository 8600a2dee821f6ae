"""`pdmesh bench planner`: what the planner's plans are worth, beside measured tables and another's estimates."""

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from common.clock import SystemClock
from services.bench.occasion import this_occasion
from services.bench.report import Row
from services.bench.table import rows_table
from services.cli.bench.progress import bench_progress
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable, write_rows
from services.planner.benchmark.run import PlannerBench, planner_rows, planner_summary

_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "mixed": {
        "pair": "pair",
        "model": "model",
        "TPOT ≤": "limit_tpot_p99_s",
        "price ×": "price_factor",
        "first": "first_simulated_rps",
        "second": "second_simulated_rps",
        "mixed": "mixed_simulated_rps",
        "÷ best alone": "mixed_over_best_alone_simulated",
        "by closed form": "mixed_over_best_alone_closed_form",
        "plan": "mixed_plan",
    },
    "ratio": {
        "cluster": "cluster",
        "load": "load",
        "P": "prefill_instances",
        "D": "decode_instances",
        "planned": "is_planned",
        "closed form": "closed_form_rps",
        "simulated": "simulated_rps",
    },
    "rate": {
        "pair": "pair",
        "req/s": "rate_rps",
        "price/h": "price_per_h",
        "plan": "plan",
        "serving": "serving",
        "closed form": "closed_form_rps",
        "simulated": "simulated_rps",
        "holds": "within_limits",
    },
    "tightness": {
        "pair": "pair",
        "planned": "planned_rps",
        "TTFT P99 s": "ttft_p99_s",
        "TPOT P99 s": "tpot_p99_s",
        "holds": "within_limits",
        "TTFT P99 s at 1.5 ×": "over_ttft_p99_s",
        "TPOT P99 s at 1.5 ×": "over_tpot_p99_s",
        "holds at 1.5 ×": "over_within_limits",
    },
    "role": {
        "left": "left",
        "right": "right",
        "left does": "left_roles",
        "right does": "right_roles",
        "prefiller": "prefiller",
        "left prefills": "left_prefills_simulated_rps",
        "right prefills": "right_prefills_simulated_rps",
    },
    "random_cluster": {
        "cluster": "cluster",
        "load": "load",
        "error": "mean_error",
        "ranks": "rank_correlation",
        "same best": "same_best",
        "best ÷ chosen": "best_over_chosen",
    },
    "table": {"cluster": "cluster", "plans": "compared_plans", "error": "mean_error", "ranks": "rank_correlation"},
    "search": {
        "machines": "machines",
        "model": "model",
        "objective": "objective",
        "options": "options",
        "facts s": "facts_s",
        "search s": "search_s",
        "best": "best",
    },
    "measured_device": {
        "table": "table",
        "device": "device",
        "phase": "phase",
        "cases": "cases",
        "error of the fit": "fit_error",
        "of the specification": "spec_error",
        "specification ÷ measured": "spec_over_measured",
        "rounding": "rounding_error",
    },
    "oracle": {
        "device": "device",
        "model": "model",
        "TP": "tp",
        "what": "what",
        "prompt": "prompt_tokens",
        "batch": "batch",
        "ours ÷ theirs": "ours_over_theirs",
        "problem": "problem",
    },
}
"""Headings and columns of each kind of row."""


class PlannerFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh bench planner`."""

    json: Path
    data: Path | None = None
    aiconfigurator: Path | None = None
    quick: bool = False


def run_bench_planner(flags: PlannerFlags, environ: Mapping[str, str]) -> ExitCode:
    """Plan, simulate and compare; write the JSON, show it. Raises PdmeshError."""
    check_writable("--json", flags.json)
    console, occasion = Console(stderr=True), this_occasion()
    with bench_progress(console) as on_step, tempfile.TemporaryDirectory(prefix="pdmesh-plans-") as folder:
        bench = PlannerBench(
            folder=Path(folder),
            tables=_tables(flags, environ),
            aiconfigurator=flags.aiconfigurator,
            clock=SystemClock(),
            on_step=on_step,
            quick=flags.quick,
        )
        rows = tuple(planner_rows(bench))
    summary = planner_summary(rows)
    write_rows(flags.json, _command(flags), rows, summary, occasion)
    _show(rows, summary, Console())
    return ExitCode.DONE


def _tables(flags: PlannerFlags, environ: Mapping[str, str]) -> Path | None:
    """Where the measured tables are: the given folder must have them, that of the environment may."""
    if flags.data is not None:
        return flags.data / "gpu"
    data = environ.get("PDMESH_DATA")
    return Path(data, "gpu") if data and Path(data, "gpu").is_dir() else None


def _command(flags: PlannerFlags) -> str:
    """As typed, but for the folders of this machine."""
    words = ["pdmesh", "bench", "planner"]
    words += ["--data", "DIR"] if flags.data else []
    words += ["--aiconfigurator", "PYTHON"] if flags.aiconfigurator else []
    words += ["--quick"] if flags.quick else []
    return shlex.join(words)


def _show(rows: Sequence[Row], summary: Mapping[str, float], console: Console) -> None:
    for kind, columns in _COLUMNS.items():
        mine = [row for row in rows if row["kind"] == kind]
        if mine:
            console.print(rows_table(kind, mine, columns))
    ratios: list[Row] = [{"ratio": name, "value": value} for name, value in summary.items()]
    console.print(rows_table("summary", ratios, {"ratio": "ratio", "value": "value"}))
