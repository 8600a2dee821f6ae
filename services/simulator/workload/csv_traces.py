"""Traces with a header and a row for each request; what differs between them is data."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from services.simulator.workload.errors import TraceError, shown
from services.simulator.workload.lines import numbered_lines
from services.simulator.workload.requests import MAX_TOKENS, Workload
from services.simulator.workload.rows import Row, workload_from
from services.simulator.workload.timestamps import date_time_ns, seconds_ns


class TimeColumn(msgspec.Struct, frozen=True):
    """Where a trace keeps its arrivals."""

    name: str
    parse: Callable[[str], int]
    """To nanoseconds; raises ValueError, and says what is wrong."""


class CsvFormat(msgspec.Struct, frozen=True):
    """One kind of table. Columns may stand in any order, and others beside them."""

    title: str
    prompt: str
    output: str
    time: TimeColumn | None = None
    """None where the table has lengths only."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All that a header must have."""
        times = () if self.time is None else (self.time.name,)
        return (*times, self.prompt, self.output)


AZURE = CsvFormat(
    "Azure LLM inference trace", "ContextTokens", "GeneratedTokens", TimeColumn("TIMESTAMP", date_time_ns)
)
VIDUR_REPLAY = CsvFormat(
    "Vidur replay trace", "num_prefill_tokens", "num_decode_tokens", TimeColumn("arrived_at", seconds_ns)
)
VIDUR = CsvFormat("Vidur lengths", "num_prefill_tokens", "num_decode_tokens")
HELIX = CsvFormat("Helix lengths", "input_tokens", "output_tokens")

CSV_FORMATS = (AZURE, VIDUR_REPLAY, VIDUR, HELIX)
"""In the order in which they are tried: the columns of VIDUR are in VIDUR_REPLAY too."""

_WHOLE_NUMBER = re.compile(r"[0-9]{1,20}")


def read_csv(path: Path, kind: CsvFormat, limit: int | None = None) -> Workload:
    """The first `limit` requests (None: all) of a table of this kind, plain or gzipped.

    Raises TraceError that names file and line: columns that are not there, a length that is not a whole number from 1
    to MAX_TOKENS, a time that cannot be read or lies before the one above, no rows.
    """
    return workload_from(path, kind.title, _rows(path, kind), is_timed=kind.time is not None, limit=limit)


def header_cells(path: Path, number: int, line: str) -> tuple[str, ...]:
    """The names of the columns."""
    return tuple(cell.strip() for cell in _cells(path, number, line))


def _rows(path: Path, kind: CsvFormat) -> Iterator[Row]:
    lines = numbered_lines(path)
    number, line = next(lines, (1, ""))
    header = header_cells(path, number, line)
    _check_header(path, number, header, kind)
    for number, line in lines:
        cells = _cells(path, number, line)
        if len(cells) != len(header):
            raise TraceError.at(path, number, f"{len(cells)} cells under {len(header)} columns: {shown(line)}")
        cell = dict(zip(header, cells, strict=True))
        time_ns = 0 if kind.time is None else _time_ns(path, number, kind.time, cell[kind.time.name].strip())
        prompt, output = (_tokens(path, number, name, cell[name].strip()) for name in (kind.prompt, kind.output))
        yield Row(number, time_ns, prompt, output)


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise TraceError.at(path, number, f"no row of a CSV file: {error}") from error


def _check_header(path: Path, number: int, header: Sequence[str], kind: CsvFormat) -> None:
    wrong = [name for name in kind.columns if header.count(name) != 1]
    if wrong:
        raise TraceError.at(
            path,
            number,
            f"the columns are {shown(','.join(header))}; {kind.title} needs {' and '.join(wrong)}, once each",
        )


def _tokens(path: Path, number: int, column: str, text: str) -> int:
    tokens = int(text) if _WHOLE_NUMBER.fullmatch(text) else 0
    if not 1 <= tokens <= MAX_TOKENS:
        raise TraceError.at(
            path, number, f"{column} is {shown(text)}; a length is a whole number from 1 to {MAX_TOKENS:,}"
        )
    return tokens


def _time_ns(path: Path, number: int, column: TimeColumn, text: str) -> int:
    try:
        return column.parse(text)
    except ValueError as error:
        raise TraceError.at(path, number, f"{column.name} is {shown(text)}, which cannot be read: {error}") from error
