"""Any trace, read by what its first line says it is."""

from pathlib import Path

from services.simulator.workload.csv_traces import CSV_FORMATS, header_cells, read_csv
from services.simulator.workload.errors import TraceError, shown
from services.simulator.workload.lines import numbered_lines
from services.simulator.workload.mooncake import TITLE, read_mooncake
from services.simulator.workload.requests import Workload


def read_trace(path: Path, limit: int | None = None) -> Workload:
    """The first `limit` requests (None: all) of a trace in any of the known formats, plain or gzipped.

    A line that opens with `{` makes it Mooncake's (without `hash_ids`: read_mooncake keeps them), else the columns of
    the header decide.  Raises TraceError for an unknown format, and whatever the reader of the format raises.
    """
    number, line = next(numbered_lines(path), (1, ""))
    if not line:
        raise TraceError(f"{path}: the file is empty")
    if line.lstrip().startswith("{"):
        return read_mooncake(path, limit)
    header = header_cells(path, number, line)
    for kind in CSV_FORMATS:
        if set(kind.columns) <= set(header):
            return read_csv(path, kind, limit)
    known = "; ".join(f"{','.join(kind.columns)} ({kind.title})" for kind in CSV_FORMATS)
    raise TraceError.at(
        path,
        number,
        f"{shown(line)} is the header of no known trace: {known}; or one JSON object a line with "
        f"timestamp, input_length, output_length ({TITLE})",
    )
