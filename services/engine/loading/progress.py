"""How preparation tells what it does. Everything that takes seconds is a stage."""

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class PreparationProgress(Protocol):
    """Hears about stages, one at a time, in the thread that prepares."""

    def stage(self, text: str, *, foreign: bool = False) -> None:
        """A stage began and the one before is done.

        `foreign`: another program or library writes its own progress to stderr until the next stage.
        """
        ...

    def amount(self, done_bytes: int, total_bytes: int) -> None:
        """How far the present stage is, where it can tell."""
        ...


class RichProgress:
    """Bars and spinners on a terminal, one plain line per stage elsewhere. Close it, or use it as a context."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stage(self, text: str, *, foreign: bool = False) -> None:
        """Show `text`; without bars while a foreign writer has the terminal."""
        self.close()
        if foreign or not self._console.is_terminal:
            self._console.print(text, highlight=False)
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console, redirect_stdout=False, redirect_stderr=False)
        self._task = self._bars.add_task(text, total=None)
        self._bars.start()

    def amount(self, done_bytes: int, total_bytes: int) -> None:
        """Turn the spinner into a bar, and move it."""
        if self._bars is None or self._task is None:
            return
        if self._bars.tasks[0].total is None:
            self._bars.columns = (*self._bars.columns, BarColumn(), DownloadColumn())
        self._bars.update(self._task, completed=done_bytes, total=total_bytes)

    def close(self) -> None:
        """End the present stage and leave the terminal as it was found."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None
