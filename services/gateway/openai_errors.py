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
"""The client is gone when a request is cancelled, so that row is seen only if something else cancelled it."""

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


def from_failure(failure: Failure) -> ApiError:
    """A failure of the mesh; type and code name its kind."""
    kind = INVALID_REQUEST if failure.kind is FailureKind.INVALID_REQUEST else failure.kind.value
    where = "" if failure.instance is None else f" (instance {failure.instance!r})"
    body = ErrorBody(f"{failure.message}{where}", kind, code=failure.kind.value)
    return ApiError(FAILURE_STATUS[failure.kind], body, is_retryable=failure.is_retryable)
