"""`pdmesh bench gateway`: the gateway before workers that answer at once, beside a raw handler and Rust routers."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console

from common.clock import SystemClock
from services.bench.gateway.cases import MIDDLE, cases
from services.bench.gateway.run import GatewayBench, run_gateway_bench
from services.bench.report import Report, Row, write_report
from services.bench.table import rows_table
from services.cli.bench.progress import bench_progress
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable

_LAG_SECONDS = 10.0
_QUICK_SECONDS = 0.3
_COLUMNS = {
    "system": "system",
    "connections": "connections",
    "streaming": "streaming",
    "tokens": "output_tokens",
    "p50 ms": "p50_ms",
    "p99 ms": "p99_ms",
    "added p50": "added_p50_ms",
    "added p99": "added_p99_ms",
    "requests/s": "requests_per_s",
    "streams/s": "streams_per_s",
    "CPU µs": "cpu_us_per_answer",
    "client": "client",
}
_LAG_COLUMNS = {"process": "process", "p99 ms": "lag_p99_ms", "max ms": "lag_max_ms", "connections": "connections"}


class GatewayFlags(msgspec.Struct, frozen=True):
    """The flags of `pdmesh bench gateway`."""

    json: Path
    quick: bool = False
    rounds: int = 5
    seconds: float = 2.0


def run_gateway(flags: GatewayFlags, environ: Mapping[str, str]) -> ExitCode:
    """Measure, write the JSON, show it. Raises PdmeshError."""
    check_writable("--json", flags.json)
    console = Console(stderr=True)
    with bench_progress(console) as on_step:
        report = uvloop.run(
            run_gateway_bench(
                bench_of(flags), environ, SystemClock(), on_step, lambda note: console.print(note, markup=False)
            )
        )
    write_report(report, flags.json)
    _show(report, Console())
    return ExitCode.DONE


def bench_of(flags: GatewayFlags) -> GatewayBench:
    """What these flags ask for; quick is every case but those of many connections, once and shortly."""
    if flags.quick:
        few = tuple(case for case in cases() if case.connections <= MIDDLE)
        return GatewayBench("pdmesh bench gateway --quick", 1, _QUICK_SECONDS, _QUICK_SECONDS, few)
    command = f"pdmesh bench gateway --rounds {flags.rounds} --seconds {flags.seconds:g}"
    return GatewayBench(command, flags.rounds, flags.seconds, _LAG_SECONDS)


def _show(report: Report, console: Console) -> None:
    served = [row for row in report.rows if row.get("phase") == "serve"]
    console.print(rows_table("gateway", served, _COLUMNS))
    lags = [row for row in report.rows if row.get("phase") == "loop_lag"]
    console.print(rows_table("lag of event loops", lags, _LAG_COLUMNS))
    figures: list[Row] = [{"figure": name, "value": value} for name, value in report.summary.items()]
    console.print(rows_table("summary", figures, {"figure": "figure", "value": "value"}))
