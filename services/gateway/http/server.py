"""The HTTP server below the application: how much it takes of connections, heads and patience, and how it refuses."""

import asyncio
import logging
from typing import Any, Final, cast

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_request import BaseRequest

from services.gateway.http.responses import closing, error_response, exception_response, raw_response
from services.gateway.openai.errors import ApiError, ErrorBody, refused_before_routing

_log = logging.getLogger(__name__)

IDLE_S: Final = 75.0
"""How long a connection may take to ask: for its first request and between two. aiohttp's own default is an hour,
for which a thousand clients that never end their headers would take all file descriptors."""

LEAST_BYTES_PER_S: Final = 256 << 10
"""What a client has to read of an answer, on average, once it has fallen behind."""

_TOO_MANY: Final = "Too many headers received"
"""In aiohttp's words, which has no error of its own for it."""

_SHUTDOWN_S: Final = 1.0
"""How long a handler may take to end once its request has, which aiohttp grants twice. One that writes to a client that
does not read would wait for `ConnectionLimits.unread_s`."""

_LAST_WORDS_S: Final = 1.0
"""How long a connection too many is kept for its client to read why."""


class ConnectionLimits(msgspec.Struct, frozen=True):
    """What one client, or all together, may take of the server before it has asked for anything."""

    connections: int = 8192
    """Open at a time."""
    head_bytes: int = 16 << 10
    """Of a request's line, and of each of its headers; `head_excess` counts them all."""
    unread_s: float = 60.0
    """How long an answer may wait to be read; see `patience_s`."""
    idle_s: float = IDLE_S
    retry_after_s: int = 1


def build_runner(app: web.Application, limits: ConnectionLimits = ConnectionLimits()) -> web.AppRunner:
    """A runner that keeps the limits, and cancels the handler of a client that went away."""
    return _Runner(
        app,
        limits,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=limits.idle_s,
        shutdown_timeout=_SHUTDOWN_S,
        max_line_size=limits.head_bytes,
        max_field_size=limits.head_bytes,
    )


def patience_s(unread_bytes: int, least_s: float) -> float:
    """How long a client that has fallen behind may take to read what lies there for it."""
    return least_s + unread_bytes / LEAST_BYTES_PER_S


class _Runner(web.AppRunner):
    def __init__(self, app: web.Application, limits: ConnectionLimits, **arguments: Any) -> None:
        super().__init__(app, **arguments)
        self._limits = limits

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._limits)


class _Server(web.Server):
    """Makes the protocol of each connection. `made` is aiohttp's server of the same application, never used."""

    def __init__(self, made: web.Server, limits: ConnectionLimits) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,
        )
        self._limits = limits

    # A protocol factory may return any protocol; aiohttp's type names its own.
    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        if len(self._connections) >= self._limits.connections:
            return _TurnedAway(self._too_many())
        return _Connection(self, self._limits.unread_s, loop=self._loop, **self._kwargs)

    def _too_many(self) -> bytes:
        message = f"{self._limits.connections} connections are open already, the most that may; come again later"
        body = ErrorBody(message, "overloaded", code="too_many_connections")
        return raw_response(ApiError(503, body, is_retryable=True), self._limits.retry_after_s)


class _TurnedAway(asyncio.Protocol):
    """Says why there is no room, whatever is asked, and closes. What comes meanwhile is read and forgotten: to close
    with unread bytes would reset the connection, and the client would not see the answer.
    """

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        wire = _wire(transport)
        wire.write(self._answer)
        if wire.can_write_eof():
            wire.write_eof()
        self._end = asyncio.get_running_loop().call_later(_LAST_WORDS_S, wire.abort)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - part of the protocol
        if self._end is not None:
            self._end.cancel()


class _Connection(web.RequestHandler):
    """One client. Refuses in the API's envelope, and does not wait for ever until it reads its answer."""

    def __init__(self, manager: web.Server, unread_s: float, **arguments: Any) -> None:
        super().__init__(manager, **arguments)
        self._unread_s = unread_s
        self._wire: asyncio.Transport | None = None
        self._out_of_patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = _wire(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._is_read_again()
        self._wire = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._wire is not None:
            wait_s = patience_s(self._wire.get_write_buffer_size(), self._unread_s)
            self._out_of_patience = self._loop.call_later(wait_s, self._give_up)

    def resume_writing(self) -> None:
        self._is_read_again()
        super().resume_writing()

    def _is_read_again(self) -> None:
        if self._out_of_patience is not None:
            self._out_of_patience.cancel()
            self._out_of_patience = None

    def _give_up(self) -> None:
        if self._wire is not None:
            unread = self._wire.get_write_buffer_size()
            _log.info("a client has left %d bytes of its answer unread; its connection is closed", unread)
            self._wire.abort()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        # Logs, and raises where an answer has begun. Its plain text is replaced.
        told = super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong) or message == _TOO_MANY:
            why = f"the first line or a header is too long, or there are too many headers: {exc}"
            told_why = refused_before_routing(431, why)
        else:
            told_why = refused_before_routing(told.status, message or "")
        return closing(error_response(told_why))

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        # Those that no middleware has seen: an expectation that cannot be met is refused before.
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = exception_response(resp, f"{request.method} {request.path}")
        return await super().finish_response(request, resp, start_time)


def _wire(transport: asyncio.BaseTransport) -> asyncio.Transport:
    # uvloop's have its methods, and are of no class of asyncio's.
    return cast(asyncio.Transport, transport)
