"""`pdmesh bench policies --real --mesh FILE`: meshes as their files describe them, measured and predicted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from rich.console import Console

from common.clock import SystemClock
from common.errors import ConfigError
from services.bench.occasion import this_occasion
from services.bench.policies.mesh_rows import MeshLoad, Unpredicted, mesh_rows, mesh_summary, predict_mesh
from services.bench.policies.mesh_runs import MeshRun, load_meshes, run_meshes
from services.bench.policies.mesh_system import read_model_facts
from services.bench.repeats import OnStep
from services.bench.report import Report, Row, write_report
from services.bench.table import rows_table
from services.cli.bench.progress import bench_progress
from services.cli.flags import command_line, data_folder
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable
from services.launch.model import prepare_model
from services.simulator.workload.arrivals import all_at_once, as_recorded, poisson
from services.simulator.workload.errors import WorkloadError
from services.simulator.workload_choice import WorkloadChoice, choose_workload

_SEED: Final = 1
_QUICK_REQUESTS: Final = 12
_COLUMNS = {
    "mesh": "mesh",
    "policy": "policy",
    "load": "load",
    "req/s": "throughput_rps",
    "predicted": "predicted_throughput_rps",
    "TTFT s": "ttft_mean_s",
    "predicted TTFT": "predicted_ttft_mean_s",
    "TTFT P99 s": "ttft_p99_s",
    "TBT s": "tbt_mean_s",
    "predicted TBT": "predicted_tbt_mean_s",
    "TBT P99 s": "tbt_p99_s",
    "same answers": "same_answers",
}


class MeshFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh bench policies --real` with `--mesh`."""

    mesh: tuple[Path, ...]
    json: Path
    trace: str = "synthetic"
    requests: int | None = None
    divide: int = 1
    rate: float | None = None
    all_at_once: bool = False
    recorded: bool = False
    rounds: int = 5
    quick: bool = False
    data: Path | None = None


def run_bench_mesh(flags: MeshFlags, environ: Mapping[str, str]) -> ExitCode:
    """Measure, write the JSON, show it. Raises PdmeshError."""
    check_writable("--json", flags.json)
    load = _load(flags, environ)
    console = Console(stderr=True)
    with bench_progress(console) as on_step:
        report = uvloop.run(_measured(flags, load, environ, on_step, console))
    write_report(report, flags.json)
    _show(report, Console())
    return ExitCode.DONE


async def _measured(
    flags: MeshFlags, load: MeshLoad, environ: Mapping[str, str], on_step: OnStep, console: Console
) -> Report:
    occasion = this_occasion()
    meshes = load_meshes(flags.mesh, environ)
    folder = await prepare_model(meshes[0].config.model, environ)
    model = read_model_facts(folder)
    predicted = {mesh.name: predict_mesh(mesh, load.workload, model) for mesh in meshes}
    for name, prediction in predicted.items():
        if isinstance(prediction, Unpredicted):
            console.print(f"{name} is measured, not predicted: {prediction.reason}", markup=False, soft_wrap=True)
    rounds = 1 if flags.quick else flags.rounds
    run = MeshRun(meshes, folder, load.workload, rounds, model.vocab_size)
    served = await run_meshes(run, environ, SystemClock(), on_step)
    rows = mesh_rows(served, predicted, load)
    return occasion.report(command_of(flags), rows, mesh_summary(served, rows))


def _load(flags: MeshFlags, environ: Mapping[str, str]) -> MeshLoad:
    """The requests and when they come. Raises ConfigError."""
    ways = {"--rate": flags.rate is not None, "--all-at-once": flags.all_at_once, "--recorded": flags.recorded}
    chosen = [option for option, is_given in ways.items() if is_given]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} say each when requests come; give one of them")
    data = data_folder(flags.data, environ)
    requests = _QUICK_REQUESTS if flags.quick and flags.requests is None else flags.requests
    choice = WorkloadChoice(flags.trace, requests, _SEED, flags.divide, data)
    try:
        workload = choose_workload(choice)
        if flags.rate is not None:
            return MeshLoad("rate", flags.rate, poisson(workload, flags.rate, _SEED))
        if flags.recorded:
            return MeshLoad("recorded", None, as_recorded(workload))
    except WorkloadError as error:
        raise ConfigError(str(error)) from error
    return MeshLoad("all_at_once", None, all_at_once(workload))


def command_of(flags: MeshFlags) -> str:
    """The command line that these flags are, but for where the report goes and the data lie."""
    meshes = [word for mesh in flags.mesh for word in ("--mesh", mesh.name)]
    return command_line(flags, "bench", "policies", "--real", *meshes, without=("mesh", "json", "data"))


def _show(report: Report, console: Console) -> None:
    console.print(rows_table("meshes", list(report.rows), _COLUMNS))
    ratios: list[Row] = [{"ratio": name, "value": value} for name, value in report.summary.items()]
    console.print(rows_table("summary", ratios, {"ratio": "ratio", "value": "value"}))
