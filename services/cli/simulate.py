"""`pdmesh simulate`: serves a trace on devices that nobody needs to have, and says how it went."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from common.errors import ConfigError
from services.cli.flags import command_line, data_folder
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable, write_rows
from services.cli.simulate_tables import facts_lines, instances_table, runs_table, tuning_table
from services.simulator.cluster.file import load_cluster_file
from services.simulator.runs.plot import plot_runs, require_plots
from services.simulator.runs.report import Report
from services.simulator.runs.rows import Row, Run, instance_rows, run_row, summary_of, trial_rows
from services.simulator.runs.sweep import Serve, Tuned, arriving_at, max_throughput, over_rates, tuned
from services.simulator.runs.system import System, serve
from services.simulator.workload.arrivals import as_recorded
from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.requests import Workload
from services.simulator.workload_choice import WorkloadChoice, choose_workload


class SimulateFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh simulate`."""

    cluster: Path
    trace: str
    policy: str | None = None
    rate: str | None = None
    all_at_once: bool = False
    recorded: bool = False
    requests: int | None = None
    seed: int = 0
    cv: float = 1.0
    divide: int = 1
    data: Path | None = None
    json: Path | None = None
    plot: Path | None = None


class _Arrivals(msgspec.Struct, frozen=True):
    """At `rates`; without any, as recorded or all at once."""

    rates: tuple[float, ...]
    recorded: bool
    seed: int
    cv: float

    def check(self, workload: Workload) -> None:
        """Raise WorkloadError where `workload` cannot arrive so."""
        if self.rates:
            arriving_at(workload, self.rates[0], self.seed, self.cv)
        elif self.recorded:
            as_recorded(workload)

    def runs(self, system: System, workload: Workload, serve: Serve) -> Iterator[Run]:
        if self.rates:
            reports = over_rates(system, workload, self.rates, self.seed, serve, self.cv)
            yield from (Run(system, rate, report) for rate, report in zip(self.rates, reports, strict=True))
        elif self.recorded:
            yield Run(system, None, serve(system, as_recorded(workload)))
        else:
            yield Run(system, None, max_throughput(system, workload, serve))


def run_simulate(flags: SimulateFlags, environ: Mapping[str, str], out: Console, err: Console) -> ExitCode:
    """Simulate, print the tables to `out` and progress to `err`, write what was asked for. Raises PdmeshError."""
    if flags.plot is not None:
        require_plots()
    arrivals = _arrivals(flags)
    file = load_cluster_file(flags.cluster)
    systems = file.systems(_words(flags.policy))
    workload = _workload(flags, environ, arrivals)
    for option, path in (("--json", flags.json), ("--plot", flags.plot)):
        check_writable(option, path)
    found, runs = _simulate(systems, workload, arrivals, err)
    rows: list[Row] = [run_row(file, run) for run in runs]
    of_instances = [row for run in runs for row in instance_rows(file, run)]
    trials = [row for each in found for row in trial_rows(each)]
    for line in facts_lines(file, workload):
        out.print(line, highlight=False, markup=False)
    out.print(runs_table(rows))
    if trials:
        out.print(tuning_table(trials))
    if len(arrivals.rates) < 2:
        out.print(instances_table(of_instances))
    if flags.json is not None:
        write_rows(flags.json, command_of(flags), [*rows, *of_instances, *trials], summary_of(runs))
    if flags.plot is not None:
        plot_runs(runs, f"{file.model.spec.name}, {workload.name}, simulated", flags.plot)
    return ExitCode.DONE


def _simulate(
    systems: Sequence[System], workload: Workload, arrivals: _Arrivals, console: Console
) -> tuple[list[Tuned], list[Run]]:
    found: list[Tuned] = []
    runs: list[Run] = []
    with _progress(console, len(systems) * max(1, len(arrivals.rates))) as show:
        for system in systems:
            found.append(tuned(system, workload, show("tuning", 0)))
            runs += arrivals.runs(found[-1].system, workload, show("", 1))
    return found, runs


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[str, int], Serve]]:
    """Makes simulators that show how far they are: runs done of `total`, and within one by its requests."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def showing(word: str, counts: int) -> Serve:
            numbers = count(1)

            def serve_and_show(system: System, workload: Workload) -> Report:
                done = progress.tasks[0].completed
                which = f"{word} {next(numbers)}" if word else workload.arrivals
                progress.update(task, description=f"{system.name}, {which}")
                report = serve(system, workload, lambda share: progress.update(task, completed=done + counts * share))
                progress.update(task, completed=done + counts)
                return report

            return serve_and_show

        yield showing


def command_of(flags: SimulateFlags) -> str:
    """The command line that these flags are."""
    return command_line(flags, "simulate")


def _arrivals(flags: SimulateFlags) -> _Arrivals:
    chosen = [
        option
        for option, is_given in (
            ("--rate", flags.rate is not None),
            ("--all-at-once", flags.all_at_once),
            ("--recorded", flags.recorded),
        )
        if is_given
    ]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} say each when requests come; give one of them")
    rates = dict.fromkeys(map(_rate, _words(flags.rate)))
    return _Arrivals(tuple(rates), flags.recorded, flags.seed, flags.cv)


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ConfigError(f"--rate has {word!r}; give requests per second above 0, such as 4 or 2,4,6.5")
    return rate


def _words(text: str | None) -> list[str]:
    if text is None:
        return []
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ConfigError(f"{text!r} has an empty place; separate names and numbers by single commas")
    return words


def _workload(flags: SimulateFlags, environ: Mapping[str, str], arrivals: _Arrivals) -> Workload:
    choice = WorkloadChoice(flags.trace, flags.requests, flags.seed, flags.divide, data_folder(flags.data, environ))
    try:
        workload = choose_workload(choice)
        arrivals.check(workload)
    except WorkloadError as error:
        raise ConfigError(str(error)) from error
    return workload
