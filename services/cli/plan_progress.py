"""How far `pdmesh plan` is, at a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from services.simulator.runs.report import Report
from services.simulator.runs.sweep import Serve
from services.simulator.runs.system import System, serve
from services.simulator.workload.requests import Workload


class ShownProgress:
    """A bar of so many pieces of work, and what is being done now."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def tell(self, text: str) -> None:
        """What is done now."""
        self._progress.update(self._task, description=text)

    def done(self) -> None:
        """One piece of work is."""
        self._progress.advance(self._task)

    def simulator(self, words: str) -> Serve:
        """A simulator that shows how far each of its runs is."""

        def serve_and_show(system: System, workload: Workload) -> Report:
            return serve(system, workload, lambda share: self.tell(f"{words}, {workload.arrivals}: {share:.0%}"))

        return serve_and_show


@contextmanager
def shown_progress(console: Console, total: int) -> Iterator[ShownProgress]:
    """Shows `total` pieces of work; nothing where `console` is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ShownProgress(progress, progress.add_task("", total=total))
