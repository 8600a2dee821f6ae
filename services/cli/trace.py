"""`pdmesh trace`: why requests were placed as they were, and what was predicted beside what came true."""

import urllib.parse
from pathlib import Path
from typing import Final

from rich.console import Console

from common.errors import PdmeshError
from services.cli.gateway_client import GatewayAt, ask
from services.cli.trace_perfetto import perfetto_file
from services.cli.trace_view import (
    candidates_table,
    events_table,
    headline,
    legs_table,
    parts_table,
    summaries_table,
    why_nothing_is_predicted,
)
from services.gateway.records.trace_types import RequestTrace, TraceList, WholeTraces

_PIPE_COLUMNS: Final = 160


class NoTrace(PdmeshError):
    """The gateway keeps no trace that could be written."""


class FileNotWritten(PdmeshError):
    """The file that was asked for cannot be written there."""


def wide_console() -> Console:
    """On stdout: as wide as the terminal, or in a pipe as wide as the tables, where rich would take 80 columns."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_COLUMNS)
    return console


def show_traces(at: GatewayAt, limit: int, *, as_json: bool, console: Console) -> None:
    """Print the newest `limit` requests of the mesh whose gateway serves there. Raises NoMesh and GatewayRefused."""
    body, found = ask(at, f"/traces?limit={limit}", TraceList)
    if as_json:
        console.print_json(body.decode())
    elif not found.kept:
        console.print("This gateway keeps no traces; set gateway.traces above 0.")
    elif not found.traces:
        console.print("No request has come yet.")
    else:
        console.print(summaries_table(found.traces))


def show_trace(at: GatewayAt, request: str, *, as_json: bool, console: Console) -> None:
    """Print all that is known of one request. Raises NoMesh, and GatewayRefused where it is not known."""
    body, trace = ask(at, _path_of(request), RequestTrace)
    if as_json:
        console.print_json(body.decode())
        return
    for line in headline(trace):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(parts_table(trace))
    if (events := events_table(trace)).row_count:
        console.print(events)
    if trace.prediction is None:
        console.print(why_nothing_is_predicted(trace), markup=False, highlight=False, soft_wrap=True)
        return
    assert trace.placement is not None
    console.print(legs_table(trace))
    console.print(candidates_table(trace.placement))


def write_perfetto(at: GatewayAt, request: str | None, limit: int, file: Path, console: Console) -> None:
    """Write one request, or the newest `limit`, for ui.perfetto.dev.

    Raises NoMesh, GatewayRefused, NoTrace where the gateway knows of none at all, and FileNotWritten.
    """
    if request is None:
        found = ask(at, f"/traces?limit={limit}&whole=true", WholeTraces)[1].traces
    else:
        found = (ask(at, _path_of(request), RequestTrace)[1],)
    if not found:
        raise NoTrace(
            f"there is nothing to write to {str(file)!r}: the gateway has no trace yet, or gateway.traces is 0"
        )
    try:
        file.write_bytes(perfetto_file(found))
    except OSError as error:
        raise FileNotWritten(f"the timeline cannot be written to {str(file)!r}: {error.strerror}") from error
    requests = "1 request" if len(found) == 1 else f"{len(found)} requests"
    console.print(
        f"{file}: {requests}; open it at https://ui.perfetto.dev", markup=False, highlight=False, soft_wrap=True
    )


def _path_of(request: str) -> str:
    return f"/traces/{urllib.parse.quote(request, safe='')}"
