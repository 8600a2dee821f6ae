"""From the rows of any trace to a workload."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import msgspec

from services.simulator.workload.errors import TraceError, WorkloadError
from services.simulator.workload.requests import TracedRequest, Workload

RECORDED = "as recorded"
"""`Workload.arrivals` of a trace with times."""


class Row(msgspec.Struct, frozen=True):
    """One request as a trace states it."""

    line: int
    time_ns: int
    """From any origin; 0 in every row of a trace without times."""
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


def workload_from(path: Path, source: str, rows: Iterable[Row], is_timed: bool, limit: int | None) -> Workload:
    """The workload of the first `limit` rows (None: of all), which starts at 0 s.

    Raises TraceError where there are no rows, or a time lies before the one above it.
    """
    if limit is not None and limit < 1:
        raise WorkloadError(f"limit is {limit!r}; read at least one row of {path}")
    requests: list[TracedRequest] = []
    start_ns = previous_ns = 0
    for row in islice(rows, limit):
        if not requests:
            start_ns = previous_ns = row.time_ns
        if row.time_ns < previous_ns:
            early_s = (previous_ns - row.time_ns) / 1e9
            raise TraceError.at(path, row.line, f"comes {early_s:g} s before the row above; sort the trace by time")
        previous_ns = row.time_ns
        requests.append(
            TracedRequest((row.time_ns - start_ns) / 1e9, row.prompt_tokens, row.output_tokens, row.hash_ids)
        )
    if not requests:
        raise TraceError(f"{path}: no rows; a trace has one for each request")
    return Workload(trace_name(path), f"{source}, {path.name}", tuple(requests), RECORDED if is_timed else None)


def trace_name(path: Path) -> str:
    """The name of a workload that was read from `path`: the file's, without folder and endings."""
    return path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl") or path.name
