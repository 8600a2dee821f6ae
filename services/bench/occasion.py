"""When, where and from which source a run of a benchmark began."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from services.bench.checkout import commit_of
from services.bench.machine import Machine, this_machine
from services.bench.report import Report, Row


class Occasion(msgspec.Struct, frozen=True):
    """Looked up before anything is measured: later the load is the benchmark's own, and the source may be another."""

    commit: str
    date: str
    machine: Machine

    def report(self, command: str, rows: Sequence[Row], summary: Mapping[str, float]) -> Report:
        """What `command` found in the run that began then."""
        return Report(command, self.commit, self.date, self.machine, tuple(rows), summary)


def this_occasion() -> Occasion:
    """A run begins now."""
    return Occasion(
        commit=commit_of(Path(__file__).parent),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
    )
