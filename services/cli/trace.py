"""`pdmesh trace`: why requests were placed as they were, and what was predicted beside what came true."""

import urllib.parse
from typing import Final, TypeVar

from rich.console import Console

from common.errors import PdmeshError
from services.cli.gateway_client import GatewayRefused, ask, no_mesh
from services.cli.trace_view import (
    candidates_table,
    events_table,
    headline,
    stages_table,
    summaries_table,
    why_nothing_is_predicted,
)
from services.gateway.trace_types import RequestTrace, TraceList

_PIPE_COLUMNS: Final = 160

T = TypeVar("T")


class NoTrace(PdmeshError):
    """The gateway keeps no trace of that request; its own words."""


def wide_console() -> Console:
    """On stdout: as wide as the terminal, or in a pipe as wide as the tables, where rich would take 80 columns."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_COLUMNS)
    return console


def show_traces(url: str, limit: int, *, as_json: bool, console: Console) -> None:
    """Print the newest `limit` requests of the mesh whose gateway serves at `url`. Raises NoMesh."""
    body, found = _ask(url, f"/traces?limit={limit}", TraceList)
    if as_json:
        console.print_json(body.decode())
    elif not found.kept:
        console.print("This gateway keeps no traces; set gateway.traces above 0.")
    elif not found.traces:
        console.print("No request has come yet.")
    else:
        console.print(summaries_table(found.traces))


def show_trace(url: str, request: str, *, as_json: bool, console: Console) -> None:
    """Print all that is known of one request. Raises NoMesh, and NoTrace where the gateway does not know it."""
    body, trace = _ask(url, f"/traces/{urllib.parse.quote(request, safe='')}", RequestTrace)
    if as_json:
        console.print_json(body.decode())
        return
    for line in headline(trace):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if (events := events_table(trace)).row_count:
        console.print(events)
    if trace.prediction is None:
        console.print(why_nothing_is_predicted(trace), markup=False, highlight=False, soft_wrap=True)
        return
    assert trace.placement is not None
    console.print(stages_table(trace))
    console.print(candidates_table(trace.placement))


def _ask(url: str, path: str, kind: type[T]) -> tuple[bytes, T]:
    """The body and what it says. Raises NoMesh, and NoTrace where the gateway says so."""
    try:
        return ask(url, path, kind)
    except GatewayRefused as refused:
        if refused.code == "unknown_request":
            raise NoTrace(str(refused)) from refused
        raise no_mesh(url, refused) from refused
