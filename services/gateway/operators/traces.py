"""GET /traces and GET /traces/{request_id}: why each request was placed as it was, and how long that took.

They show no prompts and no answers; without gateway.api_keys they are for networks where everybody may be trusted.
"""

from typing import Final

import msgspec
from aiohttp import web

from common.ids import RequestId
from services.gateway.http.responses import error_response, json_response
from services.gateway.openai.errors import ApiError, invalid
from services.gateway.records.trace_types import RequestTrace, TraceList, WholeTraces, summary_of
from services.gateway.records.traces import Traces

MOST_LISTED: Final = 1000
"""More would hold up the event loop, which serves all requests, for too long."""

_FEW: Final = 20
_PREFIXES: Final = ("chatcmpl-", "cmpl-")
"""What the two endpoints put before the request's id in a body; x-request-id has it alone."""


class TraceRoutes:
    """The routes over what is kept."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def routes(self) -> list[web.RouteDef]:
        """To be added to the application before it runs."""
        return [web.get("/traces", self._newest), web.get("/traces/{request_id}", self._one)]

    async def _newest(self, http: web.Request) -> web.Response:
        try:
            limit = _limit(http.query.get("limit", str(_FEW)))
            is_whole = _flag("whole", http.query.get("whole", "false"))
        except ApiError as error:
            return error_response(error)
        if is_whole:
            return json_response(msgspec.json.encode(WholeTraces(self._traces.limit, self._traces.newest(limit))))
        lines = tuple([summary_of(trace) for trace in self._traces.newest(limit)])
        return json_response(msgspec.json.encode(TraceList(self._traces.limit, lines)))

    async def _one(self, http: web.Request) -> web.Response:
        try:
            trace = self._find(http.match_info["request_id"])
        except ApiError as error:
            return error_response(error)
        return json_response(msgspec.json.encode(trace))

    def _find(self, shown: str) -> RequestTrace:
        if (trace := self._traces.trace(request_of(shown))) is not None:
            return trace
        most = self._traces.limit
        kept = f"of the last {most} requests that reached the mesh" if most else "of no request"
        message = f"there is no trace of {shown!r}: this gateway keeps traces {kept} (gateway.traces: {most})"
        raise invalid(message, "request_id", "unknown_request", 404)


def request_of(shown: str) -> RequestId:
    """The request of an id as a client was shown it, in a body or in x-request-id."""
    for prefix in _PREFIXES:
        if shown.startswith(prefix):
            return RequestId(shown.removeprefix(prefix))
    return RequestId(shown)


def _flag(name: str, text: str) -> bool:
    if text in ("true", "false"):
        return text == "true"
    raise invalid(f"{name} is {text!r}: say true or false", name)


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= MOST_LISTED:
        return int(text)
    raise invalid(f"limit is {text!r}: give a whole number from 1 to {MOST_LISTED}", "limit")
