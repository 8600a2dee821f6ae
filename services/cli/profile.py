"""`pdmesh profile`: measures the steps of running instances and writes what they cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from common.costs.step import Step
from common.errors import ConfigError
from common.messages.operator import InstanceInfo
from services.cli.outcome import ExitCode
from services.cli.report_file import check_writable
from services.planner.errors import PlannerError
from services.planner.measuring.client import MeshClient
from services.planner.measuring.plot import plot_profile, require_plots
from services.planner.measuring.profiling import Survey, limits_of, measure_points, profile_of, unrest
from services.scheduling.profiles.profile import Profile, encode_profile
from services.scheduling.profiles.profile_grid import FULL, QUICK, grid_steps

ALL: Final = "all"

_UNREST: Final = 1.5
"""Above this, a profile is as much of what else ran as of the instance."""

_UNITS = MappingProxyType(
    {
        "base": ("ms", 1e3),
        "per_token": ("µs/token", 1e6),
        "per_chunk_context": ("µs/token", 1e6),
        "per_decode_context": ("µs/token", 1e6),
        "per_sequence": ("µs/sequence", 1e6),
        "per_context": ("µs/token", 1e6),
    }
)
"""How each coefficient is shown: its unit, and how many of it are one second."""


class ProfileFlags(msgspec.Struct, frozen=True):
    """The flags of `pdmesh profile`."""

    url: str
    instances: tuple[str, ...]
    """Ids, or ALL."""
    out: Path
    plot: Path | None
    repeats: int
    is_quick: bool
    longest: int | None = None
    """Tokens of the longest prompt and context measured; None: as the grid has it."""
    key: str | None = None
    """The API key with which to ask."""


def run_profile(flags: ProfileFlags, console: Console) -> ExitCode:
    """Measure every instance asked for, one after another, and write its profile. Raises PdmeshError.

    Progress and tables go to `console`.
    """
    if flags.plot is not None:
        require_plots()
    client = MeshClient(flags.url, flags.key)
    chosen = _chosen(client.instances(), flags.instances)
    files = _files(chosen, flags.out)
    size = QUICK if flags.is_quick else FULL
    if flags.longest is not None:
        size = msgspec.structs.replace(size, longest=flags.longest)
    surveys = [Survey(info.member.instance, grid_steps(limits_of(info), size), flags.repeats) for info in chosen]
    for info, survey, file in zip(chosen, surveys, files, strict=True):
        with _progress(survey, console) as on_visit:
            points = measure_points(survey, client, on_visit, time.sleep)
        profile = profile_of(info, points, _now())
        _write(file, profile)
        _show(survey.instance, profile, file, console)
        if flags.plot is not None:
            plot_profile(profile, survey.instance, _named(flags.plot, survey.instance, alone=len(chosen) == 1))
    return ExitCode.DONE


def _show(name: str, profile: Profile, file: Path, console: Console) -> None:
    console.print(profile_table(name, profile))
    if (ratio := unrest(profile.points)) > _UNREST:
        console.print(
            f"most steps took up to {ratio:.1f} times as long as at their best: something else uses this device; "
            "measure again when it does not",
            soft_wrap=True,
        )
    console.print(f"written to {file}", markup=False, highlight=False, soft_wrap=True)


def profile_table(name: str, profile: Profile) -> Table:
    """The coefficients with their units, and how well they fit."""
    emulated = f", emulated {profile.slowdown:g} × slower" if profile.slowdown > 1 else ""
    table = Table(title=f"{name}: {profile.device}, {profile.subject.dtype}{emulated}", title_justify="left")
    table.add_column("model")
    table.add_column("coefficient", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("unit", no_wrap=True)
    table.add_column("R²", justify="right")
    table.add_column("worst", justify="right")
    table.add_column("points", justify="right")
    for model, fit in profile.fits.items():
        quality = [f"{fit.r2:.4f}", f"{fit.worst_relative_residual:.0%}", str(fit.points)]
        for coefficient, value in msgspec.structs.asdict(getattr(profile.costs, model)).items():
            unit, in_a_second = _UNITS[coefficient]
            table.add_row(model, coefficient, f"{value * in_a_second:.4g}", unit, *quality)
            model, quality = "", ["", "", ""]
        table.add_section()
    return table


def _chosen(instances: Sequence[InstanceInfo], names: Sequence[str]) -> list[InstanceInfo]:
    known = [info.member.instance for info in instances]
    if not known:
        raise PlannerError("the mesh has no instances yet; wait until it is ready")
    for name in names:
        if name != ALL and name not in known:
            raise ConfigError(f"--instance {name!r} is not in the mesh, which has {', '.join(known)}")
    return [info for info in instances if ALL in names or info.member.instance in names]


def _files(chosen: Sequence[InstanceInfo], out: Path) -> list[Path]:
    """Where each profile goes; known to be writable before anything is measured."""
    if out.suffix == ".json" and len(chosen) > 1:
        raise ConfigError(f"--out {str(out)!r} is one file for {len(chosen)} instances; give a folder")
    files = [out] if out.suffix == ".json" else [out / f"{info.member.instance}.json" for info in chosen]
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out: {str(file)!r} cannot be written: {error.strerror}") from error
        check_writable("--out", file)
    return files


def _write(file: Path, profile: Profile) -> None:
    try:
        file.write_bytes(encode_profile(profile))
    except OSError as error:
        raise PlannerError(f"--out: {str(file)!r} cannot be written: {error.strerror}") from error


def _named(plot: Path, name: str, *, alone: bool) -> Path:
    return plot if alone else plot.with_name(f"{plot.stem}-{name}{plot.suffix}")


@contextmanager
def _progress(survey: Survey, console: Console) -> Iterator[Callable[[Step], None]]:
    columns = (TextColumn("{task.fields[name]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    more = (TimeRemainingColumn(), TextColumn("{task.description}"))
    # Redrawn seldom: drawing takes CPU time from what is measured.
    with Progress(*columns, *more, console=console, refresh_per_second=1, transient=True) as progress:
        task = progress.add_task("", total=survey.num_visits(), completed=-1, name=survey.instance)
        yield lambda step: progress.update(task, advance=1, description=_words(step))


def _words(step: Step) -> str:
    shape = step.shape
    if step.is_prefill:
        return f"a prompt of {shape.chunk_tokens}"
    chunk = f"a chunk of {shape.chunk_tokens} after {shape.chunk_context}" if shape.chunk_tokens else ""
    decodes = f"{shape.decodes} decodes of {shape.decode_context} together" if shape.decodes else ""
    return " with ".join(part for part in (chunk, decodes) if part)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
