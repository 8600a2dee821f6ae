"""`pdmesh trace`: why requests were placed as they were, and what was predicted beside what came true."""

import http.client
import urllib.error
import urllib.parse
import urllib.request
from typing import Final, TypeVar

import msgspec
from rich.console import Console

from common.errors import PdmeshError
from services.cli.links import NoMesh
from services.cli.trace_view import (
    candidates_table,
    events_table,
    headline,
    stages_table,
    summaries_table,
    why_nothing_is_predicted,
)
from services.gateway.trace_types import RequestTrace, TraceList

_TIMEOUT_S: Final = 10.0
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


class _Told(msgspec.Struct, frozen=True):
    message: str
    code: str | None = None


class _Envelope(msgspec.Struct, frozen=True):
    error: _Told


def _ask(url: str, path: str, kind: type[T]) -> tuple[bytes, T]:
    """The body and what it says. Raises NoMesh, and NoTrace where the gateway says so."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}{path}", timeout=_TIMEOUT_S) as answer:
            body = answer.read()
            return body, msgspec.json.decode(body, type=kind)
    except urllib.error.HTTPError as error:
        raise _refusal(error, url) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Malformed addresses and answers are ValueErrors.
        raise _no_mesh(url, error) from error


def _refusal(error: urllib.error.HTTPError, url: str) -> PdmeshError:
    try:
        told = msgspec.json.decode(error.read(), type=_Envelope).error
    except (OSError, http.client.HTTPException, ValueError):
        return _no_mesh(url, error)
    return NoTrace(told.message) if told.code == "unknown_request" else _no_mesh(url, told.message)


def _no_mesh(url: str, reason: object) -> NoMesh:
    return NoMesh(f"no pdmesh gateway that keeps traces answers at {url!r} ({reason}); name one with --url")
