"""/openapi.json: what the public routes take and give, generated from the types that read and write it."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from services.gateway.http.admission import OPEN_PATHS
from services.gateway.openai.body import IGNORED
from services.gateway.routes.operations import (
    EVENTS,
    HEADERS,
    KEY_ERROR,
    OPERATIONS,
    OTHER_ERROR,
    Answer,
    Operation,
)

OPENAPI: Final = "3.1.0"

_VERSION: Final = "1"
"""Of the API, as its paths say."""

_SCHEMAS: Final = "#/components/schemas/"
_ABOUT: Final = (
    "The OpenAI API as this server has it. A parameter that is null counts as not given; one that is not in these "
    "schemas is refused with status 400. An error after the first event of a stream is an event of its own, and no "
    "`[DONE]` follows."
)


def document(model: str) -> dict[str, Any]:
    """The document of a server of this model."""
    schemas = _schemas()
    for name in _request_names():
        _complete(schemas[name], model)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": OPENAPI,
        "info": {"title": "pdmesh", "version": _VERSION, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        # Either of them: with a key, or, where the operator has made none, without.
        "security": [{"key": []}, {}],
    }


def _request_names() -> list[str]:
    return [operation.body.__name__ for operation in OPERATIONS if operation.body is not None]


def _types() -> Iterator[Any]:
    for operation in OPERATIONS:
        if operation.body is not None:
            yield operation.body
        for answer in operation.answers.values():
            yield from (body for body in answer.bodies.values() if body is not None)


def _schemas() -> dict[str, Any]:
    """Of every type that is named, and those within; what requests are made of takes nulls."""
    _, schemas = msgspec.json.schema_components(list(_types()), ref_template=_SCHEMAS + "{name}")
    for schema in schemas.values():
        # Only requests refuse what they do not know.
        if schema.get("additionalProperties") is False:
            optional = schema["properties"].keys() - set(schema["required"])
            for name in optional:
                schema["properties"][name] = _or_null(schema["properties"][name])
    return schemas


def _or_null(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, and null, which counts as not given."""
    kinds = schema.get("anyOf", ())
    if {"type": "null"} in kinds:
        return schema
    outside = {name: schema[name] for name in ("default", "description") if name in schema}
    inside = {name: value for name, value in schema.items() if name not in outside}
    return {"anyOf": [inside, {"type": "null"}], **outside}


def _complete(schema: dict[str, Any], model: str) -> None:
    """What the type of a body does not say: the model's name, and the parameters that are not even read."""
    schema["properties"]["model"] = {"enum": [model]}
    for name in sorted(IGNORED):
        schema["properties"][name] = {"description": "Accepted without effect."}


def _operation(operation: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {str(status): _response(answer) for status, answer in _answers(operation)},
    }
    if operation.path in OPEN_PATHS:
        made["security"] = []
    if operation.body is not None:
        content = {"application/json": {"schema": _schema_of(operation.body)}}
        made["requestBody"] = {"required": True, "content": content}
    names = [part.strip("{}") for part in operation.path.split("/") if part.startswith("{")]
    if names:
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return made


def _answers(operation: Operation) -> Iterator[tuple[int | str, Answer]]:
    yield from operation.answers.items()
    if operation.path not in OPEN_PATHS:
        yield KEY_ERROR
    yield "default", OTHER_ERROR


def _response(answer: Answer) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": answer.words,
        "content": {kind: {"schema": _body_of(kind, body)} for kind, body in answer.bodies.items()},
    }
    if answer.headers:
        made["headers"] = {
            name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in answer.headers
        }
    return made


def _body_of(kind: str, body: Any) -> dict[str, Any]:
    if kind == EVENTS:
        said = f"Server-sent events. The data of each is a {body.__name__} in JSON; that of the last is [DONE]."
        return {"type": "string", "description": said, "x-event-data": _schema_of(body)}
    return {"type": "string"} if body is None else _schema_of(body)


def _schema_of(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_SCHEMAS + "{name}")
    return schema
