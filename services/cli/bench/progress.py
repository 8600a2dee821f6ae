"""A line that says what a benchmark measures just now."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def bench_progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that says what is measured now, on a terminal; nothing elsewhere."""
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Redrawn seldom: drawing takes CPU time from what is measured.
    with Progress(*columns, console=console, refresh_per_second=1, disable=not console.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda label: progress.update(task, description=label)
