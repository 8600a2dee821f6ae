"""What can be wrong with a workload."""

from pathlib import Path

from common.errors import PdmeshError


class WorkloadError(PdmeshError, ValueError):
    """No such workload can be made; the message names the value and what would do."""


class TraceError(WorkloadError):
    """A trace is not there or cannot be used; the message names file, line where there is one, and what is wrong."""

    @classmethod
    def at(cls, path: Path, line: int, what: str) -> "TraceError":
        """An error in one line, counted from 1."""
        return cls(f"{path}, line {line}: {what}")


def shown(text: str) -> str:
    """`text` as a message quotes it: cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
