"""What `pdmesh simulate` prints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from rich import box
from rich.table import Table

from services.simulator.cluster.file import ClusterFile
from services.simulator.runs.rows import Row
from services.simulator.workload.requests import Workload
from services.simulator.workload.statistics import LengthStatistics, statistics

_Cell = str | int | float | bool | None
_Column = tuple[str, Callable[[float], str]]


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.1f} ms"


def _percent(value: float) -> str:
    return f"{value:.0%}"


_RUNS: Mapping[str, _Column] = MappingProxyType(
    {
        "system": ("system", _plain),
        "rate": ("rate_rps", _plain),
        "req/s": ("throughput_rps", lambda value: f"{value:.2f}"),
        "TTFT P50": ("ttft_p50_s", _seconds),
        "TTFT P99": ("ttft_p99_s", _seconds),
        "TBT P50": ("tbt_p50_s", _milliseconds),
        "TBT P99": ("tbt_p99_s", _milliseconds),
        "by P": ("split_share", _percent),
        "preempted": ("preemptions", _whole),
    }
)
"""Heading → column of the rows, and how its numbers are written."""
_INSTANCES: Mapping[str, _Column] = MappingProxyType(
    {
        "system": ("system", _plain),
        "instance": ("instance", _plain),
        "device": ("device", _plain),
        "role": ("role", _plain),
        "KV tokens": ("kv_tokens", _whole),
        "requests": ("requests", _whole),
        "busy": ("busy", _percent),
        "link": ("link_busy", _percent),
        "last end": ("last_finish_s", _seconds),
    }
)


def facts_lines(file: ClusterFile, workload: Workload) -> Iterator[str]:
    """What was simulated, in words."""
    keys, found = file.keys, statistics(workload)
    yield f"simulated, not run: {file.model.spec.name}, {keys.dtype}, links of {keys.link.gbit_per_s:g} Gb/s"
    costs = (f"{name} {facts.worst_fit:.0%} ({facts.origin})" for name, facts in file.facts.items())
    yield f"costs as policies know them, off by at most: {', '.join(costs)}"
    yield f"{found.num_requests:,} requests, {workload.source}"
    yield f"tokens, mean / P50 / P99 / max: prompts {_lengths(found.prompt)}, outputs {_lengths(found.output)}"


def runs_table(rows: Sequence[Row]) -> Table:
    """A line for each row of kind "run"."""
    return _table("runs", rows, _RUNS)


def instances_table(rows: Sequence[Row]) -> Table:
    """A line for each row of kind "instance"."""
    return _table("instances", rows, _INSTANCES)


def tuning_table(rows: Sequence[Row]) -> Table:
    """The best of the rows of kind "tuning" of each system and parameter."""
    table = _empty("tuned")
    for heading in ("system", "parameter", "best", "req/s", "tried"):
        table.add_column(heading)
    for key in dict.fromkeys((row["system"], row["parameter"]) for row in rows):
        tried = {float(row["value"] or 0): float(row["throughput_rps"] or 0) for row in rows if _of(row) == key}
        best = max(tried, key=lambda value: (tried[value], -value))
        table.add_row(str(key[0]), str(key[1]), f"{best:.4g}", f"{tried[best]:.2f}", str(len(tried)))
    return table


def _of(row: Row) -> tuple[_Cell, _Cell]:
    return row["system"], row["parameter"]


def _table(title: str, rows: Sequence[Row], columns: Mapping[str, _Column]) -> Table:
    """Without the columns that are empty in every row; words may be wrapped, and are never cut."""
    table = _empty(title)
    shown = {heading: column for heading, column in columns.items() if any(row[column[0]] is not None for row in rows)}
    for heading, (key, written) in shown.items():
        texts = [heading, *(_text(row[key], written) for row in rows)]
        longest = max(len(word) for text in texts for word in text.split())
        table.add_column(heading, justify="left" if isinstance(rows[0][key], str) else "right", min_width=longest)
    for row in rows:
        table.add_row(*(_text(row[key], written) for key, written in shown.values()))
    return table


def _empty(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)


def _text(value: _Cell, written: Callable[[float], str]) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else written(value)


def _lengths(lengths: LengthStatistics) -> str:
    return " / ".join(f"{value:,.0f}" for value in (lengths.mean, lengths.p50, lengths.p99, lengths.max))
