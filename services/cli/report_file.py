"""Files that commands write: checked before the work, and figures in the one shape of the benchmarks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError, PdmeshError

if TYPE_CHECKING:
    from services.bench.occasion import Occasion

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


def write_rows(
    file: Path, command: str, rows: Sequence[Row], summary: Mapping[str, float], occasion: "Occasion | None" = None
) -> None:
    """Raises PdmeshError where `file`, which --json named, cannot be written. `occasion`: where the load of the machine
    before the run matters; None: as it is now.
    """
    # Facts of the machine come from torch, which takes seconds to load.
    from services.bench.occasion import this_occasion
    from services.bench.report import write_report

    try:
        write_report((occasion or this_occasion()).report(command, rows, summary), file)
    except OSError as error:
        raise PdmeshError(f"--json: {str(file)!r} cannot be written: {error.strerror}") from error
