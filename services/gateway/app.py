"""The OpenAI-compatible HTTP application over a `Mesh`."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from common.clock import Clock
from common.logs import LimitedLog
from services.gateway.completions import ApiSettings, Completions, Mint, ModelCard
from services.gateway.observer import Observer
from services.gateway.openai_errors import ApiError, ErrorBody, invalid
from services.gateway.openai_types import ModelEntry, ModelList
from services.gateway.responses import error_response, json_response
from services.gateway.stream import Mesh
from services.gateway.text_lane import TextLane

_log = logging.getLogger(__name__)

IDLE_S: Final = 75.0
"""How long a connection may take to ask: for its first request and between two. aiohttp's own default is an hour,
for which a thousand clients that never end their headers would take all file descriptors."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(
    mesh: Mesh,
    text: TextLane,
    model: ModelCard,
    settings: ApiSettings,
    clock: Clock,
    mint: Mint,
    observer: Observer,
) -> web.Application:
    """The application; more routes may be added before it runs. `text` must be entered by then.

    Run it with `build_runner`: without handler cancellation a client that leaves would not free its request.
    """
    app = web.Application(
        client_max_size=settings.max_body,
        middlewares=[_errors_in_envelopes],
        handler_args={"logger": _ServerLog(clock)},
    )
    completions = Completions(mesh, text, model, settings, clock, mint, observer)
    entries = _ModelRoutes(model)
    health = _HealthRoutes(mesh)
    app.add_routes(
        [
            web.post("/v1/chat/completions", completions.chat),
            web.post("/v1/completions", completions.plain),
            web.get("/v1/models", entries.all),
            web.get("/v1/models/{id:.+}", entries.one),
            web.get("/health", health.alive),
            web.get("/ready", health.ready),
        ]
    )
    return app


def build_runner(app: web.Application, idle_s: float = IDLE_S) -> web.AppRunner:
    """A runner that cancels the handler of a client that went away, and closes connections that do not ask."""
    return web.AppRunner(app, handler_cancellation=True, access_log=None, keepalive_timeout=idle_s)


class _ServerLog(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp's server logs, but for peers that speak no HTTP: they were told, and may be many.

    aiohttp would write an error with a traceback for each.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(_log, {})
        self._limited = LimitedLog(_log, clock)

    def exception(self, msg: object, *args: object, exc_info: Any = True, **more: Any) -> None:
        """Log an exception; those that a peer provokes are one line per interval."""
        if isinstance(exc_info, HttpProcessingError | web.RequestPayloadError):
            self._limited.warning("a request was not HTTP: %s", " ".join(str(exc_info).split())[:200])
        else:
            super().exception(msg, *args, exc_info=exc_info, **more)


class _ModelRoutes:
    def __init__(self, model: ModelCard) -> None:
        self._entry = ModelEntry(model.id, model.created)

    async def all(self, _: web.Request) -> web.Response:
        return json_response(msgspec.json.encode(ModelList([self._entry])))

    async def one(self, http: web.Request) -> web.Response:
        name = http.match_info["id"]
        if name != self._entry.id:
            message = f"the model {name!r} does not exist here; this server serves {self._entry.id!r}"
            return error_response(invalid(message, "model", "model_not_found", status=404))
        return json_response(msgspec.json.encode(self._entry))


class _HealthRoutes:
    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def alive(self, _: web.Request) -> web.Response:
        return json_response(b'{"status":"alive"}')

    async def ready(self, _: web.Request) -> web.Response:
        reason = self._mesh.not_ready()
        if reason is None:
            return json_response(b'{"status":"ready"}')
        return json_response(msgspec.json.encode({"status": "not ready", "reason": reason}), status=503)


@web.middleware
async def _errors_in_envelopes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What aiohttp itself refuses, and bugs, have the shape of every other error."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status)
        message = f"{request.method} {request.path}: {error.reason}"
        return error_response(invalid(message, code=code, status=error.status))
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        body = ErrorBody("the server failed on this request; its log says why", "server_error", code="internal")
        return error_response(ApiError(500, body))
