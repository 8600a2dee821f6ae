"""HTTP responses that carry JSON, errors among them."""

from collections.abc import Mapping

from aiohttp import web

from services.gateway.openai_errors import ApiError


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """`body` is JSON already."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def error_response(
    error: ApiError, headers: Mapping[str, str] | None = None, retry_after_s: int | None = None
) -> web.Response:
    """The error in OpenAI's envelope; a retryable one says when to come again."""
    told = dict(headers or {})
    if error.is_retryable and retry_after_s is not None:
        told["Retry-After"] = str(retry_after_s)
    return json_response(error.encode(), error.status, told)
