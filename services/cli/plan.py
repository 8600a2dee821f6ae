"""`pdmesh plan`: from machines, a model and a workload to the best deployments, and their mesh.yaml."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from common.errors import ConfigError, PdmeshError
from services.cli.flags import command_line, data_folder
from services.cli.outcome import ExitCode
from services.cli.plan_progress import shown_progress
from services.cli.report_file import check_writable, write_rows
from services.planner.files.mesh_comments import mesh_comments
from services.planner.files.mesh_file import hosts_of, mesh_of, mesh_text
from services.planner.files.plan_file import load_plan_file
from services.planner.measuring.plot import require_plots
from services.planner.plan import Plan
from services.planner.planning import Planned, best_plan, planned, with_wishes
from services.planner.report.explain import explanation
from services.planner.report.pareto_plot import plot_front
from services.planner.report.plan_rows import Row, front_rows, group_rows, left_out_rows, plan_row, summary_of
from services.planner.report.plan_table import plans_table
from services.planner.report.plan_words import NEEDS_RANKS, facts_lines
from services.planner.request import Objective, PlanRequest
from services.planner.search.pareto import SCALES, FrontPoint, front, limits_of
from services.planner.trials.evaluate import Effort, Evaluation, evaluate, ranked

_TABLE_COLUMNS = 120
"""Where there are fewer, rich would leave out the last columns: better that a terminal folds the lines."""


class PlanFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `pdmesh plan`; None is not given."""

    cluster: Path
    objective: str | None = None
    rate: float | None = None
    top: int = 5
    explain: bool = False
    json: Path | None = None
    plot: Path | None = None
    out: Path | None = None
    all: Path | None = None
    no_simulate: bool = False
    runnable: bool = False
    requests: int = Effort().most_requests
    seed: int = 0
    data: Path | None = None


def run_plan(flags: PlanFlags, environ: Mapping[str, str], out: Console, err: Console) -> ExitCode:
    """Plan, print to `out`, progress and warnings to `err`, write what was asked for. Raises PdmeshError."""
    request = _request(flags, environ)
    _check(flags, request)
    found = planned(request, runnable=flags.runnable)
    evaluations = _evaluated(found.top(flags.top), request, flags, err)
    rows = [plan_row(rank, each, request) for rank, each in enumerate(evaluations, 1)]
    for line in facts_lines(request):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.width = max(out.width, _TABLE_COLUMNS)
    out.print(plans_table("plans", rows))
    if flags.explain:
        for line in explanation(found, evaluations, request):
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    points = _front(flags, request, err)
    _write_meshes(flags, evaluations, request, err)
    if flags.plot is not None:
        plot_front(points, evaluations, request, flags.plot)
    if flags.json is not None:
        every = list(_json_rows(evaluations, found, points, request))
        write_rows(flags.json, command_of(flags), every, summary_of(evaluations, request))
    return ExitCode.DONE


def command_of(flags: PlanFlags) -> str:
    """The command line that these flags are."""
    return command_line(flags, "plan", str(flags.cluster), without=("cluster",))


def _request(flags: PlanFlags, environ: Mapping[str, str]) -> PlanRequest:
    objective = None
    if flags.objective is not None:
        if flags.objective not in list(Objective):
            raise ConfigError(f"--objective is {flags.objective!r}; give one of {', '.join(Objective)}")
        objective = Objective(flags.objective)
    if flags.rate is not None and not 0 < flags.rate < float("inf"):
        raise ConfigError(f"--rate is {flags.rate!r}; give requests per second above 0, such as 4 or 6.5")
    return with_wishes(load_plan_file(flags.cluster, data=data_folder(flags.data, environ)), objective, flags.rate)


def _check(flags: PlanFlags, request: PlanRequest) -> None:
    """What would else fail after the work."""
    if flags.plot is not None:
        require_plots()
        if not limits_of(request):
            raise ConfigError(
                f"--plot draws what limits cost, and {str(flags.cluster)!r} has none; write `limits:` with ttft_p99_s "
                "or tpot_p99_s"
            )
    for option, path in (("--json", flags.json), ("--plot", flags.plot), ("--out", flags.out)):
        check_writable(option, path)
    if flags.all is not None:
        try:
            flags.all.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--all: {str(flags.all)!r} cannot be a folder: {error.strerror}") from error


def _evaluated(plans: Sequence[Plan], request: PlanRequest, flags: PlanFlags, err: Console) -> tuple[Evaluation, ...]:
    """Simulated and in order."""
    if flags.no_simulate:
        return tuple(map(Evaluation, plans))
    effort = Effort(most_requests=flags.requests, seed=flags.seed)
    found = []
    with shown_progress(err, len(plans)) as progress:
        for number, plan in enumerate(plans, 1):
            found.append(evaluate(plan, request, effort, progress.simulator(f"plan {number} of {len(plans)}")))
            progress.done()
    return ranked(found, request)


def _front(flags: PlanFlags, request: PlanRequest, err: Console) -> tuple[FrontPoint, ...]:
    """What the picture draws; nothing without one."""
    if flags.plot is None:
        return ()
    with shown_progress(err, len(limits_of(request)) * len(SCALES)) as progress:

        def find(scaled: PlanRequest) -> Plan | None:
            progress.tell("limits and what they cost")
            plan = best_plan(scaled, runnable=flags.runnable)
            progress.done()
            return plan

        return tuple(front(request, find))


def _write_meshes(flags: PlanFlags, evaluations: Sequence[Evaluation], request: PlanRequest, err: Console) -> None:
    if flags.out is not None:
        _write_mesh(flags.out, evaluations[0], request, command_of(flags))
        if evaluations[0].plan.needs_ranks:
            err.print(_needs_ranks(flags.out, evaluations), markup=False, highlight=False, soft_wrap=True)
    if flags.all is not None:
        for rank, each in enumerate(evaluations, 1):
            if not each.plan.needs_ranks:
                file = flags.all / f"{rank:02}-{each.plan.serving}.yaml"
                _write_mesh(file, each, request, command_of(flags))


def _write_mesh(file: Path, each: Evaluation, request: PlanRequest, command: str) -> None:
    config = mesh_of(each.plan, request)
    text = mesh_text(config, mesh_comments(each, request, command, hosts_of(config)))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PdmeshError(f"{str(file)!r} cannot be written: {error.strerror}") from error


def _needs_ranks(file: Path, evaluations: Sequence[Evaluation]) -> str:
    runnable = [str(rank) for rank, each in enumerate(evaluations, 1) if not each.plan.needs_ranks]
    others = f"; --all DIR writes {', '.join(runnable)} of the table, which can be run" if runnable else ""
    return f"note: {file} {NEEDS_RANKS}, and `pdmesh up` refuses that for now; --runnable plans without{others}"


def _json_rows(
    evaluations: Sequence[Evaluation], found: Planned, points: Sequence[FrontPoint], request: PlanRequest
) -> Iterator[Row]:
    for rank, each in enumerate(evaluations, 1):
        yield plan_row(rank, each, request)
    for rank, each in enumerate(evaluations, 1):
        yield from group_rows(rank, each, request)
    yield from front_rows(points, request)
    yield from left_out_rows(found.options.refused, found.pruned)
