"""What the public routes take and give, as data: /openapi.json is made of this table and of the types that it names.

A route for operators (/instances, /links, /traces, the dashboard) has no row: it is for networks of people who trust
each other.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from services.gateway.openai.errors import ErrorEnvelope
from services.gateway.openai.types import (
    ChatChunk,
    ChatCompletion,
    ChatFields,
    Completion,
    CompletionFields,
    ModelEntry,
    ModelList,
)
from services.gateway.routes.health_types import Health

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
TEXT: Final = "text/plain"


class Answer(msgspec.Struct, frozen=True):
    """One kind of response."""

    words: str
    bodies: Mapping[str, Any]
    """By media type, what a body is; of EVENTS, what the data of an event is; None: text."""
    headers: tuple[str, ...] = ()


class Operation(msgspec.Struct, frozen=True):
    """One method of one path."""

    method: str
    path: str
    name: str
    summary: str
    answers: Mapping[int, Answer]
    body: Any = None
    """What the body of the request is; None: it has none."""


HEADERS: Final = MappingProxyType(
    {
        "x-request-id": "Names the request in the logs and traces of the gateway.",
        "x-pdmesh-placement": "Where it ran: `prefill=ID|-; decode=ID; split=N; kv-bytes=N`. Of a batch, its first "
        "prompt.",
        "Retry-After": "Seconds after which the same request may be served.",
    }
)
"""What the responses' headers mean."""


def _error(words: str, *headers: str) -> Answer:
    return Answer(words, {JSON: ErrorEnvelope}, headers)


_NOT_FOUND: Final = _error("Another model is served here.")

KEY_ERROR: Final = (401, _error("This server has API keys, and none of them came with the request."))
"""Of every route that wants a key where there are keys."""

OTHER_ERROR: Final = _error("Refused by the HTTP server, or failed.")
"""Of every route, with any other status."""

_COMPLETION_ERRORS: Final = MappingProxyType(
    {
        400: _error(
            "A parameter is wrong, not supported, or does not go with another; `param` names it.", "x-request-id"
        ),
        404: _NOT_FOUND,
        408: _error("The body did not come in time.", "x-request-id", "Retry-After"),
        413: _error("The body is larger than this server reads."),
        429: _error("Too many requests wait already.", "x-request-id", "Retry-After"),
        500: _error("The server failed on this request.", "x-request-id"),
        503: _error("No instance can serve it, or one was lost while it did.", "x-request-id", "Retry-After"),
        504: _error("It took longer than this server allows.", "x-request-id"),
    }
)


def _completion(path: str, name: str, summary: str, body: Any, whole: Any, chunk: Any) -> Operation:
    words = "The answer; with stream=true an event for each part of it, and `[DONE]` after the last."
    answer = Answer(words, {JSON: whole, EVENTS: chunk}, ("x-request-id", "x-pdmesh-placement"))
    return Operation("post", path, name, summary, {200: answer, **_COMPLETION_ERRORS}, body)


OPERATIONS: Final = (
    _completion(
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer a conversation.",
        ChatFields,
        ChatCompletion,
        ChatChunk,
    ),
    _completion(
        "/v1/completions",
        "createCompletion",
        "Go on with a text, or several.",
        CompletionFields,
        Completion,
        Completion,
    ),
    Operation(
        "get", "/v1/models", "listModels", "The served model.", {200: Answer("A list of one.", {JSON: ModelList})}
    ),
    Operation(
        "get",
        "/v1/models/{id}",
        "retrieveModel",
        "The served model, by its name.",
        {200: Answer("It.", {JSON: ModelEntry}), 404: _NOT_FOUND},
    ),
    Operation("get", "/health", "health", "Whether the process is alive.", {200: Answer("It is.", {JSON: Health})}),
    Operation(
        "get",
        "/ready",
        "ready",
        "Whether requests can be served.",
        {200: Answer("They can.", {JSON: Health}), 503: Answer("They cannot; `reason` says why.", {JSON: Health})},
    ),
    Operation(
        "get",
        "/metrics",
        "metrics",
        "What the gateway counts, in Prometheus' format.",
        {200: Answer("The figures now.", {TEXT: None})},
    ),
    Operation(
        "get", "/openapi.json", "openapi", "This document.", {200: Answer("OpenAPI 3.1.", {JSON: dict[str, Any]})}
    ),
)
"""Every public route."""
