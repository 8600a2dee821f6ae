"""What the benchmarks of the command line share: a line that says what is measured, and where the report goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.bench.transfer.errors import BenchError


def check_writable(file: Path) -> None:
    """Better known now than in minutes."""
    try:
        file.open("ab").close()
    except OSError as error:
        raise BenchError(f"--json: the report cannot be written: {error}") from error


@contextmanager
def bench_progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that says what is measured now, on a terminal; nothing elsewhere."""
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Redrawn seldom: drawing takes CPU time from what is measured.
    with Progress(*columns, console=console, refresh_per_second=1, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda label: progress.update(task, description=label)
