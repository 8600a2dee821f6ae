"""What needs an API key over HTTP, and what a client without one is told."""

from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from services.gateway.http.admission import OPEN_PATHS
from services.gateway.testing import token_by_token

Serve = Callable[..., Awaitable[Any]]

GOOD = "pdmesh-good"
HELLO = {"model": "tiny/model", "messages": [{"role": "user", "content": "hello"}]}


class OneKey:
    def owner_of(self, key: str) -> str | None:
        return "ann" if key == GOOD else None


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {GOOD}", GOOD, "Bearer "])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("POST", "/instances/d0/drain"),
        ("GET", "/never/heard/of"),
        ("GET", "/ready/"),
        ("PUT", "/v1/models"),
    ],
)
async def test_without_a_valid_key_everything_is_a_401(
    serve: Serve, authorization: str | None, method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve(token_by_token([[5]]), keys=OneKey())
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await served.client.request(method, path, headers=headers, data=b"{" if method == "POST" else None)
    error = (await response.json())["error"]
    assert (response.status, error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="pdmesh"'
    assert set(error) == {"message", "type", "param", "code"}
    assert served.mesh.requests == []
    assert GOOD not in caplog.text


async def test_whoever_starts_and_watches_the_process_needs_none(serve: Serve) -> None:
    served = await serve(token_by_token([[5]]), keys=OneKey())
    for path in OPEN_PATHS - {"/dashboard"}:
        assert (await served.client.get(path)).status == 200


async def test_with_its_key_a_client_is_served_as_without_any(serve: Serve) -> None:
    served = await serve(token_by_token([[5]]), keys=OneKey())
    headers = {"Authorization": f"bearer {GOOD}"}
    assert (await served.client.post("/v1/chat/completions", json=HELLO, headers=headers)).status == 200
    assert (await served.client.get("/never/heard/of", headers=headers)).status == 404


async def test_the_sdk_says_that_the_key_is_wrong_and_does_not_try_again(serve: Serve) -> None:
    served = await serve(token_by_token([[5]]), keys=OneKey())
    asked: Any = {"model": "tiny/model", "messages": HELLO["messages"]}
    async with AsyncOpenAI(base_url=served.url, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.chat.completions.create(**asked)
    assert refused.value.code == "invalid_api_key"
    async with AsyncOpenAI(base_url=served.url, api_key=GOOD) as client:
        assert (await client.chat.completions.create(**asked)).choices[0].finish_reason == "stop"
