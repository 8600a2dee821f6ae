"""Who is let in, and with how much: heads, bodies, keys, and streams at a time. Checks before any work is done."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from aiohttp import web

from common.clock import Clock
from common.logs import LimitedLog
from services.gateway.http.api_keys import bearer_of
from services.gateway.http.responses import error_response
from services.gateway.openai.errors import body_too_slow, invalid, overloaded, refused_before_routing, unauthorized

_log = logging.getLogger(__name__)

OPEN_PATHS: Final = frozenset({"/health", "/ready", "/dashboard"})
"""What needs no key: whoever starts and watches the process asks the first two, and must not need a secret for it. The
page of the dashboard says nothing by itself: what it shows it asks for with a key."""

KEY_NAME: Final = web.RequestKey("api_key_name", str)
"""Whose key a request came with."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]


class KeyRing(Protocol):
    """Who may come in."""

    def owner_of(self, key: str) -> str | None:
        """The name of a key that is allowed now; None: it is not."""
        ...


def limit_heads(most_bytes: int) -> Middleware:
    """Refuse requests whose first line and headers are larger together."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (size := head_bytes(request)) > most_bytes:
            message = f"the first line and the headers have {size} bytes, and {most_bytes} are allowed"
            return error_response(refused_before_routing(431, message))
        return await handler(request)

    return check


def head_bytes(request: web.Request) -> int:
    """What the first line and the headers of a request took on the wire, about."""
    return len(request.path_qs) + sum(len(name) + len(value) + 4 for name, value in request.raw_headers)


def require_keys(keys: KeyRing, clock: Clock) -> Middleware:
    """Refuse what has no valid key, but on OPEN_PATHS. Unknown paths too: nobody learns what there is."""
    limited = LimitedLog(_log, clock)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        key = bearer_of(request.headers.get("Authorization"))
        owner = None if key is None else keys.owner_of(key)
        if owner is None:
            limited.warning("%s %s from %s without a valid API key", request.method, request.path, request.remote)
            why = "an API key is needed" if key is None else "the API key is not valid"
            told = unauthorized(f"{why}: send the header 'Authorization: Bearer KEY' with a key of this server")
            return error_response(told, {"WWW-Authenticate": 'Bearer realm="pdmesh"'})
        request[KEY_NAME] = owner
        return await handler(request)

    return check


async def read_body(http: web.Request, most_bytes: int, within_s: float) -> bytes:
    """The whole body. Raises web.HTTPRequestEntityTooLarge, before anything of it is read where its length is said;
    ApiError where it does not come in time, or is not what its headers say.
    """
    if (said := http.content_length) is not None and said > most_bytes:
        raise web.HTTPRequestEntityTooLarge(most_bytes, said)
    try:
        async with asyncio.timeout(within_s):
            return await http.read()
    except TimeoutError as error:
        raise body_too_slow(within_s) from error
    except web.RequestPayloadError as error:
        raise invalid(f"the body cannot be read: {error}") from error


class StreamGate:
    """Counts the answers that are streamed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    @contextmanager
    def entered(self, *, is_stream: bool) -> Iterator[None]:
        """One more for the time within, if it is one. Raises ApiError where that is too many."""
        if not is_stream:
            yield
            return
        if self._open >= self._most:
            message = f"{self._most} answers are streamed already, the most that may (gateway.max_streams)"
            raise overloaded(f"{message}; send it again later", "too_many_streams")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def middlewares_of(head_limit: int, keys: KeyRing | None, clock: Clock) -> list[Any]:
    """What stands before every handler, the outermost first."""
    return [limit_heads(head_limit), *([] if keys is None else [require_keys(keys, clock)])]
