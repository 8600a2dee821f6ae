"""`pdmesh bench serve`: the whole mesh beside its stages alone, and beside one engine with both cores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from rich.console import Console

from common.clock import SystemClock
from common.errors import ConfigError
from common.hardware import available_cores
from services.bench.occasion import this_occasion
from services.bench.policies.mesh_system import read_model_facts
from services.bench.repeats import OnStep
from services.bench.report import Report, Row, write_report
from services.bench.serve.rows import serve_rows, serve_summary
from services.bench.serve.run import ServeRun, run_serve
from services.bench.serve.settings import ServeSettings
from services.bench.table import rows_table
from services.cli.bench.progress import bench_progress
from services.cli.flags import command_line
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable
from services.launch.model import prepare_model

_QUICK: Final = {"prompt_tokens": 32, "output_tokens": 8, "clients": 2, "turns": 4, "lone_requests": 3}
_COLUMNS = {
    "part": "part",
    "split": "split",
    "req/s": "requests_per_s",
    "least": "requests_per_s_min",
    "most": "requests_per_s_max",
    "TTFT s": "ttft_mean_s",
    "TTFT p99": "ttft_p99_s",
    "TBT s": "tbt_mean_s",
    "TBT p99": "tbt_p99_s",
    "goodput": "goodput_rps",
    "÷stage": "mesh_over_stage",
    "÷engine": "mesh_over_engine",
}
_HANDOFF_COLUMNS = {
    "split": "split",
    "TTFT s": "ttft_p50_s",
    "aggregated s": "aggregated_ttft_p50_s",
    "hand-off ms": "handoff_ttft_ms",
    "%": "handoff_ttft_percent",
    "P waits": "prefill_wait_p50_ms",
    "P": "prefill_p50_ms",
    "wire": "wire_p50_ms",
    "D waits": "decode_wait_p50_ms",
    "D": "decode_prompt_p50_ms",
    "D alone": "aggregated_decode_prompt_p50_ms",
}
_LAG_COLUMNS = {"process": "process", "split": "split", "p99 ms": "lag_p99_ms", "max ms": "lag_max_ms"}
_TABLES = {"serve": _COLUMNS, "handoff": _HANDOFF_COLUMNS, "loop_lag": _LAG_COLUMNS}


class ServeFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh bench serve`. None: what ServeSettings has."""

    json: Path
    quick: bool = False
    model: str = "smollm2"
    dtype: str = "bfloat16"
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    clients: int | None = None
    turns: int | None = None
    max_batch: int | None = None
    slo_ttft: float | None = None
    slo_tpot: float | None = None
    rounds: int = 5

    def settings(self, cores: tuple[int, ...]) -> ServeSettings:
        """What is served, pinned to the first two of `cores`. Raises ConfigError."""
        if len(cores) < 2:
            raise ConfigError(
                f"P and D get a core each, and this process may use the cores {list(cores)}; let it use two"
            )
        asked = {
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "clients": self.clients,
            "turns": self.turns,
            "max_batch": self.max_batch,
            "slo_ttft_s": self.slo_ttft,
            "slo_tpot_s": self.slo_tpot,
        }
        keys: dict[str, object] = {"model": self.model, "dtype": self.dtype, "cores": cores[:2]}
        keys |= _QUICK if self.quick else {}
        keys |= {key: value for key, value in asked.items() if value is not None}
        try:
            return msgspec.convert(keys, ServeSettings)
        except msgspec.ValidationError as error:
            raise ConfigError(str(error)) from error


def run_bench_serve(flags: ServeFlags, environ: Mapping[str, str]) -> ExitCode:
    """Measure, write the JSON, show it. Raises PdmeshError."""
    settings = flags.settings(available_cores())
    check_writable("--json", flags.json)
    with bench_progress(Console(stderr=True)) as on_step:
        report = uvloop.run(_measured(flags, settings, environ, on_step))
    write_report(report, flags.json)
    _show(report, Console())
    return ExitCode.DONE


async def _measured(flags: ServeFlags, settings: ServeSettings, environ: Mapping[str, str], on_step: OnStep) -> Report:
    folder = await prepare_model(flags.model, environ)
    rounds = 1 if flags.quick else flags.rounds
    run = ServeRun(settings, folder, read_model_facts(folder).vocab_size, rounds)
    occasion = this_occasion()
    served = await run_serve(run, environ, SystemClock(), on_step)
    return occasion.report(command_of(flags), serve_rows(settings, served), serve_summary(served))


def command_of(flags: ServeFlags) -> str:
    """The command line that these flags are, but for where the report goes."""
    return command_line(flags, "bench", "serve", without=("json",))


def _show(report: Report, console: Console) -> None:
    for kind, columns in _TABLES.items():
        console.print(rows_table(kind, [row for row in report.rows if row["kind"] == kind], columns))
    ratios: list[Row] = [{"ratio": name, "value": value} for name, value in report.summary.items()]
    console.print(rows_table("summary", ratios, {"ratio": "ratio", "value": "value"}))
