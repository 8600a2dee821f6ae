"""Files that commands write: checked before the work, and figures in the one shape of the benchmarks."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from common.errors import ConfigError, PdmeshError

Row = Mapping[str, str | int | float | bool | None]


def check_writable(option: str, path: Path | None) -> None:
    """Raise ConfigError where what `option` names cannot be written: better known now than after the work.

    Leaves no empty file behind: work that fails must not look like work that was done.
    """
    if path is None:
        return
    is_new = not path.exists()
    try:
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{option}: {str(path)!r} cannot be written: {error.strerror}") from error


def write_rows(file: Path, command: str, rows: Sequence[Row], summary: Mapping[str, float]) -> None:
    """Raises PdmeshError where `file`, which --json named, cannot be written."""
    # Facts of the machine come from torch, which takes seconds to load.
    from services.bench.checkout import commit_of
    from services.bench.machine import this_machine
    from services.bench.report import Report, write_report

    report = Report(
        command=command,
        commit=commit_of(Path(__file__).parent),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        rows=tuple(rows),
        summary=summary,
    )
    try:
        write_report(report, file)
    except OSError as error:
        raise PdmeshError(f"--json: {str(file)!r} cannot be written: {error.strerror}") from error
