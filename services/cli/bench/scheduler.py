"""`pdmesh bench scheduler`: scheduling by capacity and its rivals, simulated or as meshes of this machine."""

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from rich.console import Console

from common.clock import SystemClock
from services.bench.occasion import this_occasion
from services.bench.policies.mesh_system import ModelFacts, mesh_system, read_model_facts, read_profiles
from services.bench.repeats import OnStep
from services.bench.report import Report, Row, write_report
from services.bench.scheduling.clusters import scheduler_clusters
from services.bench.scheduling.loads import scheduler_loads
from services.bench.scheduling.pair_meshes import PairSettings, pair_config, requests_for
from services.bench.scheduling.real_rows import pair_rows, pair_summary
from services.bench.scheduling.real_runs import PairRun, check_policies, run_pair
from services.bench.scheduling.simulated import scheduler_rows, scheduler_summary
from services.bench.table import rows_table
from services.cli.bench.profiles import measured_profiles
from services.cli.bench.progress import bench_progress
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable
from services.launch.model import prepare_model
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.runs.report import Report as SimulatedReport
from services.simulator.runs.system import serve

SIMULATED, REAL = "simulated", "real"
_QUICK_REQUESTS: Final = 96

_RATES_COLUMNS = {
    "slowdown": "slowdown",
    "fast tokens/s": "fast_tokens_per_s",
    "slow tokens/s": "slow_tokens_per_s",
    "fast÷slow": "fast_over_slow",
    "mean÷min": "ceiling",
}
_REAL_COLUMNS = {
    "slowdown": "slowdown",
    "policy": "policy",
    "tokens/s": "throughput_tokens_per_s",
    "predicted": "predicted_throughput_tokens_per_s",
    "÷round robin": "over_round_robin",
    "ceiling": "ceiling",
    "finish spread": "finish_spread",
}
_TITLES = {"scheduler": "policies", "ablation": "parts of the score", "predictor": "predictors of output lengths"}
_SIMULATED_COLUMNS = {
    "cluster": "cluster_key",
    "load": "load",
    "dispatch": "dispatch",
    "policy": "policy",
    "setting": "setting",
    "tokens/s": "throughput_tokens_per_s",
    "÷round robin": "over_round_robin",
    "ceiling": "ceiling",
    "finish spread": "finish_spread",
    "preempted": "preemptions",
}


class SchedulerFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh bench scheduler`."""

    kind: str
    json: Path
    quick: bool = False
    model: str = "smollm2"
    slowdowns: tuple[float, ...] = (1.67, 3.45)
    policies: tuple[str, ...] = ("round_robin", "dp", "jsq", "capacity")
    requests: int | None = None
    """None: enough for each slowdown."""
    rounds: int = 5

    def requests_at(self, slowdown: float) -> int:
        """Requests of each run."""
        return self.requests or (_QUICK_REQUESTS if self.quick else requests_for(slowdown))


def run_scheduler(flags: SchedulerFlags, environ: Mapping[str, str]) -> ExitCode:
    """Measure or simulate, write the JSON, show it. Raises PdmeshError."""
    check_writable("--json", flags.json)
    console = Console(stderr=True)
    occasion = this_occasion()
    with bench_progress(console) as on_step:
        if flags.kind == REAL:
            check_policies(flags.policies)
            rows, summary = uvloop.run(_real(flags, environ, on_step, console))
        else:
            rows = scheduler_rows(scheduler_clusters(load_catalogue()), scheduler_loads(), on_step, quick=flags.quick)
            summary = scheduler_summary(rows)
    report = occasion.report(command_of(flags), rows, summary)
    write_report(report, flags.json)
    _show(report, Console())
    return ExitCode.DONE


def command_of(flags: SchedulerFlags) -> str:
    """The command line that these flags are, but for where the report goes."""
    words = ["pdmesh", "bench", "scheduler", f"--{flags.kind}", *["--quick"] * flags.quick]
    if flags.kind == REAL:
        words += ["--model", flags.model, "--policy", ",".join(flags.policies), "--rounds", str(flags.rounds)]
        words += [word for slowdown in flags.slowdowns for word in ("--slowdown", f"{slowdown:g}")]
        words += ["--requests", str(flags.requests)] if flags.requests else []
    return shlex.join(words)


async def _real(
    flags: SchedulerFlags, environ: Mapping[str, str], on_step: OnStep, console: Console
) -> tuple[list[Row], dict[str, float]]:
    settings = PairSettings(model=flags.model)
    if flags.quick:
        settings = msgspec.structs.replace(settings, prompt_tokens=32, output_tokens=8, max_batch=4)
    folder = await prepare_model(flags.model, environ)
    facts = read_model_facts(folder)
    rows: list[Row] = []
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pdmesh-profiles-") as temporary:
        profiles = await measured_profiles(
            # As fast as the cores are: an emulated instance stretches what its profile says.
            pair_config(settings, "dp", 1.0, {}),
            folder,
            Path(temporary),
            environ,
            on_step,
            repeats=2 if flags.quick else 4,
            longest=256,
            shows=console.is_terminal,
        )
        for slowdown in flags.slowdowns:
            run = PairRun(
                settings=settings,
                slowdown=slowdown,
                policies=flags.policies,
                profiles=profiles,
                model_folder=folder,
                vocab_size=facts.vocab_size,
                requests=flags.requests_at(slowdown),
                rounds=1 if flags.quick else flags.rounds,
            )
            predicted = {policy: _predicted(run, policy, facts) for policy in run.policies}
            served = await run_pair(run, environ, SystemClock(), on_step)
            rows += pair_rows(served, predicted)
            summary |= pair_summary(served)
    return rows, summary


def _predicted(run: PairRun, policy: str, facts: ModelFacts) -> SimulatedReport:
    config = run.config(policy)
    system = mesh_system(config, policy, read_profiles(config), facts)
    return serve(system, run.settings.workload(run.requests))


def _show(report: Report, console: Console) -> None:
    rates = [row for row in report.rows if row["kind"] == "co_running_rates"]
    if rates:
        console.print(rows_table("rates of both instances at the same time", rates, _RATES_COLUMNS))
    for kind, title in _TITLES.items():
        rows = [row for row in report.rows if row["kind"] == kind]
        if rows:
            console.print(rows_table(title, rows, _REAL_COLUMNS if rates else _SIMULATED_COLUMNS))
    ratios: list[Row] = [{"ratio": name, "value": value} for name, value in report.summary.items()]
    console.print(rows_table("summary", ratios, {"ratio": "ratio", "value": "value"}))
