"""/openapi.json: valid, of every public route and no other, and true of what the routes say and take."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from common.clock import SystemClock
from common.config.types import GatewayConfig, MeshConfig
from common.messages.control import FinishReason
from services.engine.twin.deterministic_model import write_deterministic_model
from services.gateway.openai.types import ChatFields, CompletionFields
from services.gateway.routes.openapi import document
from services.gateway.service import GatewayService
from services.gateway.testing import token_by_token

Ids = Callable[[str], tuple[int, ...]]
Serve = Callable[..., Awaitable[Any]]


def read_document(model: str = "m") -> dict[str, Any]:
    """As a client reads it."""
    made: dict[str, Any] = json.loads(msgspec.json.encode(document(model)))
    return made


OPERATORS = ("/instances", "/links", "/traces", "/dashboard")
"""Routes for operators, which the document leaves out."""


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(read_document()).validate()  # type: ignore[arg-type]


async def test_the_gateway_serves_it(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("x")]))
    response = await served.client.get("/openapi.json")
    assert response.content_type == "application/json"
    assert await response.json() == read_document("tiny/model")


async def test_it_has_every_public_route_of_a_gateway_and_no_other(tmp_path: Path) -> None:
    folder = write_deterministic_model(tmp_path / "model")
    gateway = GatewayConfig(http="127.0.0.1:0", control="tcp://127.0.0.1:*")
    service = GatewayService(MeshConfig(gateway=gateway), folder, SystemClock())
    await service.start()
    try:
        found = set(routes(service._http.app))
    finally:
        await service.close()
    public = {(method, path) for method, path in found if not path.startswith(OPERATORS)}
    written = {(method, path) for path, item in read_document()["paths"].items() for method in item}
    assert public == written


def routes(app: web.Application | None) -> list[tuple[str, str]]:
    assert app is not None
    known = [(route.method.lower(), route.resource) for route in app.router.routes()]
    return [(method, resource.canonical) for method, resource in known if resource is not None and method != "head"]


@pytest.mark.parametrize("kind", [ChatFields, CompletionFields])
def test_a_body_has_the_parameters_of_its_type_and_those_without_effect(kind: type[msgspec.Struct]) -> None:
    schema = read_document()["components"]["schemas"][kind.__name__]
    ignored = {"metadata", "store", "service_tier"}
    assert set(schema["properties"]) == set(kind.__struct_fields__) | ignored
    assert schema["additionalProperties"] is False
    assert schema["properties"]["model"] == {"enum": ["m"]}


def validator(name: str) -> jsonschema.Draft202012Validator:
    made = read_document("tiny/model")
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": made["components"]})


GOOD: list[dict[str, Any]] = [
    {"prompt": "a"},
    {"prompt": ["a", "b"]},
    {"prompt": [1, 2]},
    {"prompt": [[1], [2, 3]], "n": 2},
    {"prompt": "a", "temperature": None, "stop": None, "pdmesh": None, "stream_options": None, "store": True},
    {"prompt": "a", "echo": True, "logprobs": 2, "max_tokens": 0, "logit_bias": {"5": 1}},
]
BAD: list[dict[str, Any]] = [
    {},
    {"prompt": None},
    {"prompt": []},
    {"prompt": ["a", 1]},
    {"prompt": [["a"]]},
    {"prompt": "a", "max_tokens": -1},
    {"prompt": "a", "logit_bias": {"x": 1}},
    {"prompt": "a", "nonsense": 1},
    {"prompt": "a", "model": "another"},
]


@pytest.mark.parametrize("body", [*GOOD, *BAD], ids=repr)
async def test_what_the_schema_takes_is_served_and_what_it_does_not_is_refused(
    serve: Serve, ids: Ids, body: dict[str, Any]
) -> None:
    served = await serve(lambda asked: token_by_token([ids("xy")] * asked.choices, FinishReason.LENGTH)(asked))
    sent = {"model": "tiny/model", **body}
    response = await served.client.post("/v1/completions", json=sent)
    takes = validator("CompletionFields").is_valid(sent)
    assert takes == (body in GOOD)
    assert (response.status == 200) == takes, await response.text()
    validator("Completion" if takes else "ErrorEnvelope").validate(await response.json())


async def test_what_is_said_is_of_the_types_that_the_document_names(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("xy")], FinishReason.LENGTH))
    chat = {"model": "tiny/model", "messages": [{"role": "user", "content": "a"}]}
    answer = await served.client.post("/v1/chat/completions", json=chat)
    validator("ChatCompletion").validate(await answer.json())
    events = await (await served.client.post("/v1/chat/completions", json={**chat, "stream": True})).text()
    *chunks, done, _ = events.split("\n\n")
    assert done == "data: [DONE]"
    for chunk in chunks:
        validator("ChatChunk").validate(json.loads(chunk.removeprefix("data: ")))
    for path, name in (("/health", "Health"), ("/ready", "Health"), ("/v1/models", "ModelList")):
        validator(name).validate(await (await served.client.get(path)).json())
