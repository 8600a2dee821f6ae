"""The OpenAI-compatible HTTP application over a `Mesh`."""

import logging
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from common.clock import Clock
from common.logs import LimitedLog
from services.gateway.http.admission import Handler, KeyRing, middlewares_of
from services.gateway.http.responses import error_response, exception_response, json_response
from services.gateway.lane.text_lane import TextLane
from services.gateway.openai.errors import ApiError, ErrorBody, invalid
from services.gateway.openai.types import ModelEntry, ModelList
from services.gateway.records.observer import Observer
from services.gateway.routes.completions import ApiSettings, Completions, Mint, ModelCard
from services.gateway.routes.health_types import Health
from services.gateway.routes.openapi import document
from services.gateway.stream import Mesh

_log = logging.getLogger(__name__)


def build_app(
    mesh: Mesh,
    text: TextLane,
    model: ModelCard,
    settings: ApiSettings,
    clock: Clock,
    mint: Mint,
    observer: Observer,
    keys: KeyRing | None = None,
) -> web.Application:
    """The application; more routes may be added before it runs. `text` must be entered by then. `keys`: None lets
    everybody in.

    Run it with `http.server.build_runner`: without handler cancellation a client that leaves would not free its
    request.
    """
    app = web.Application(
        client_max_size=settings.max_body,
        middlewares=[_errors_in_envelopes, *middlewares_of(settings.max_header, keys, clock)],
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
            web.get("/openapi.json", _DocumentRoute(model.id).show),
        ]
    )
    return app


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
        return json_response(msgspec.json.encode(Health("alive")))

    async def ready(self, _: web.Request) -> web.Response:
        reason = self._mesh.not_ready()
        if reason is None:
            return json_response(msgspec.json.encode(Health("ready")))
        return json_response(msgspec.json.encode(Health("not ready", reason)), status=503)


class _DocumentRoute:
    def __init__(self, model: str) -> None:
        self._document = msgspec.json.encode(document(model))

    async def show(self, _: web.Request) -> web.Response:
        return json_response(self._document)


@web.middleware
async def _errors_in_envelopes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What aiohttp itself refuses, and bugs, have the shape of every other error."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return exception_response(error, f"{request.method} {request.path}")
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        body = ErrorBody("the server failed on this request; its log says why", "server_error", code="internal")
        return error_response(ApiError(500, body))
