"""HTTP responses that carry JSON, errors among them."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from services.gateway.openai.errors import ApiError, refused_before_routing

_KEPT: Final = ("Allow", "WWW-Authenticate")
"""Headers of aiohttp's own refusals that say what would do."""

_LEAVES_BODY: Final = frozenset({408, 413})
"""Refusals in the middle of a request: the connection is closed, since its rest is not wanted."""


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """`body` is JSON already."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def error_response(
    error: ApiError, headers: Mapping[str, str] | None = None, retry_after_s: int | None = None
) -> web.Response:
    """The error in OpenAI's envelope; a retryable one says when to come again.

    OpenAI's clients try 408, 409, 429 and all of 5xx again unless `x-should-retry` says otherwise.
    """
    told = {**(headers or {}), **_retry_headers(error, retry_after_s)}
    response = json_response(error.encode(), error.status, told)
    return closing(response) if error.status in _LEAVES_BODY else response


def closing(response: web.Response) -> web.Response:
    """The same, after which the connection is closed."""
    response.force_close()
    return response


def exception_response(error: web.HTTPException, what: str) -> web.Response:
    """What aiohttp itself refuses, in the envelope; `what` was asked, such as "GET /path"."""
    shown = refused_before_routing(error.status, f"{what}: {error.reason}")
    kept = {name: error.headers[name] for name in _KEPT if name in error.headers}
    return error_response(shown, kept)


def raw_response(error: ApiError, retry_after_s: int) -> bytes:
    """The bytes of an error for a connection that no HTTP server looks after."""
    body = error.encode()
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in _retry_headers(error, retry_after_s).items()),
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _retry_headers(error: ApiError, retry_after_s: int | None) -> dict[str, str]:
    headers = {"x-should-retry": "true" if error.is_retryable else "false"}
    if error.is_retryable and retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    return headers
