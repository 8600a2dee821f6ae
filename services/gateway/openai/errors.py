"""Errors as OpenAI clients read them: one envelope, one table from failure to HTTP status."""

from types import MappingProxyType
from typing import Final

import msgspec

from common.errors import Failure, FailureKind, PdmeshError

FAILURE_STATUS: Final = MappingProxyType(
    {
        FailureKind.INVALID_REQUEST: 400,
        FailureKind.OVERLOADED: 429,
        FailureKind.NO_INSTANCE: 503,
        FailureKind.PREFILL_LOST: 503,
        FailureKind.DECODE_LOST: 503,
        FailureKind.HANDOFF_FAILED: 503,
        FailureKind.DEADLINE_EXCEEDED: 504,
        FailureKind.ENGINE_FAILED: 500,
        FailureKind.SHUTTING_DOWN: 503,
        FailureKind.CANCELLED: 500,
    }
)
"""The client is gone when a request is cancelled, so that row is seen only if something else cancelled it.

Why a deadline is 504 and not 408, and nothing is 422: docs/decisions/0022-refusals.md.
"""

_HTTP_CODES: Final = MappingProxyType(
    {
        400: "bad_http",
        404: "not_found",
        405: "method_not_allowed",
        408: "body_too_slow",
        413: "body_too_large",
        417: "expectation_failed",
        431: "headers_too_large",
    }
)
"""Of what the HTTP server refuses before any handler has looked at it."""

_MOST_WORDS: Final = 300
"""Characters of what the HTTP parser says: it quotes the peer."""

INVALID_REQUEST = "invalid_request_error"
"""The error type of everything that the client has to change."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The inside of OpenAI's error envelope."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """{"error": {...}}, as an answer's body or as the last event of a broken stream."""

    error: ErrorBody


class ApiError(PdmeshError):
    """A request that ends with an error status."""

    def __init__(self, status: int, body: ErrorBody, *, is_retryable: bool = False) -> None:
        super().__init__(body.message)
        self.status = status
        self.body = body
        self.is_retryable = is_retryable

    def encode(self) -> bytes:
        """The envelope as JSON."""
        return msgspec.json.encode(ErrorEnvelope(self.body))


def invalid(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> ApiError:
    """The client's mistake, in the parameter `param` where there is one."""
    return ApiError(status, ErrorBody(message, INVALID_REQUEST, param, code))


def refused_before_routing(status: int, message: str) -> ApiError:
    """What the HTTP server refuses by itself, `message` in its words; its own failures are not told."""
    if status >= 500:
        body = ErrorBody("the server failed on this request; its log says why", "server_error", code="internal")
        return ApiError(status, body)
    return invalid(" ".join(message.split())[:_MOST_WORDS], code=_HTTP_CODES.get(status), status=status)


def unauthorized(message: str) -> ApiError:
    """A request without a valid API key."""
    return invalid(message, code="invalid_api_key", status=401)


def overloaded(message: str, code: str) -> ApiError:
    """More than this server takes on at a time; the same request may be served later."""
    return ApiError(429, ErrorBody(message, FailureKind.OVERLOADED.value, code=code), is_retryable=True)


def body_too_slow(seconds: float) -> ApiError:
    """The request did not come in the time that it may take."""
    message = f"the body did not come within {seconds} s (gateway.slow_client_s); send it again"
    return ApiError(408, ErrorBody(message, INVALID_REQUEST, code=_HTTP_CODES[408]), is_retryable=True)


def from_failure(failure: Failure) -> ApiError:
    """A failure of the mesh; type and code name its kind."""
    kind = INVALID_REQUEST if failure.kind is FailureKind.INVALID_REQUEST else failure.kind.value
    where = "" if failure.instance is None else f" (instance {failure.instance!r})"
    body = ErrorBody(f"{failure.message}{where}", kind, code=failure.kind.value)
    return ApiError(FAILURE_STATUS[failure.kind], body, is_retryable=failure.is_retryable)
