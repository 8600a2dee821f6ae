"""`pdmesh bench engine`: the CPU engine beside transformers and llama.cpp."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
from rich.console import Console

from common.clock import SystemClock
from services.bench.engine.loads import loads
from services.bench.engine.run import EngineBench, run_engine_bench
from services.bench.report import Report, Row, write_report
from services.bench.table import rows_table
from services.cli.bench.progress import bench_progress
from services.cli.flags import data_folder
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable
from services.launch.model import prepare_model
from services.simulator.workload.known import read_known
from services.simulator.workload.requests import Workload, first, scaled
from services.simulator.workload.synthetic import synthetic

_TRACE, _CONVERSATIONS, _DIVISOR = "azure_conv", 64, 8
_COLUMNS = {
    "workload": "workload",
    "phase": "phase",
    "system": "system",
    "tokens/s": "tokens_per_s",
    "least": "tokens_per_s_min",
    "most": "tokens_per_s_max",
    "pdmesh ÷": "pdmesh_over",
}


class EngineFlags(msgspec.Struct, frozen=True):
    """The flags of `pdmesh bench engine`."""

    json: Path
    peers: bool = False
    quick: bool = False
    model: str = "smollm2"
    threads: int = 2
    rounds: int = 5
    workloads: str = "ABCD"
    data: Path | None = None
    llama_python: Path | None = None


def run_engine(flags: EngineFlags, environ: Mapping[str, str]) -> ExitCode:
    """Measure, write the JSON, show it. Raises PdmeshError."""
    console = Console(stderr=True)
    check_writable("--json", flags.json)
    report = asyncio.run(_measure(flags, environ, console))
    write_report(report, flags.json)
    _show(report, Console())
    return ExitCode.DONE


async def _measure(flags: EngineFlags, environ: Mapping[str, str], console: Console) -> Report:
    folder = await prepare_model(flags.model, environ)
    vocab_size = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    chosen = loads(_conversation(flags, environ), vocab_size, quick=flags.quick)
    bench = EngineBench(
        command=_command(flags),
        folder=folder,
        threads=flags.threads,
        rounds=1 if flags.quick else flags.rounds,
        with_peers=flags.peers,
        llama_python=flags.llama_python,
    )
    with bench_progress(console) as on_step:
        return await run_engine_bench(
            bench,
            [load for load in chosen if load.name in flags.workloads.upper()],
            SystemClock(),
            on_step,
            lambda note: console.print(note, markup=False),
        )


def _conversation(flags: EngineFlags, environ: Mapping[str, str]) -> Workload:
    """The first of the public trace where its folder is known, else synthetic ones of the same quantiles."""
    data = data_folder(flags.data, environ)
    whole = synthetic(_CONVERSATIONS, seed=0) if data is None else read_known(data, _TRACE)
    return scaled(first(whole, _CONVERSATIONS), _DIVISOR)


def _command(flags: EngineFlags) -> str:
    command = f"pdmesh bench engine{' --peers' * flags.peers}{' --quick' * flags.quick}"
    return f"{command} --threads {flags.threads} --rounds {flags.rounds} --workloads {flags.workloads}"


def _show(report: Report, console: Console) -> None:
    console.print(rows_table("engine", [row for row in report.rows if row["kind"] == "engine"], _COLUMNS))
    bounds = {"bf16 TFLOP/s": "bf16_tflop_per_s", "read GB/s": "read_gb_per_s", "threads": "threads"}
    console.print(rows_table("bounds", [row for row in report.rows if row["kind"] == "bounds"], bounds))
    ratios: list[Row] = [{"ratio": name, "value": value} for name, value in report.summary.items()]
    console.print(rows_table("summary", ratios, {"ratio": "ratio", "value": "value"}))
