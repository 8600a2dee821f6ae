"""The answers of both endpoints, whole and streamed, in OpenAI's shapes."""

import json
import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from common.messages.control import FinishReason
from common.messages.sampling import TokenLogprobs
from services.gateway.stream import GenerationRequest, StreamEvent
from services.gateway.testing import emitted, placed, token_by_token

Ids = Callable[[str], tuple[int, ...]]
Serve = Callable[..., Awaitable[Any]]

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
HELLO = {"model": "tiny/model", "messages": [{"role": "user", "content": "hello"}]}
PROMPT = {"model": "tiny/model", "prompt": "hello"}
PLACEMENT = "prefill=p0; decode=d0; split=3; kv-bytes=4096"

NOTHING_CACHED = {"prompt_tokens_details": {"cached_tokens": 0}}


async def ask(served: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await served.client.post(path, json=body)
    answer: dict[str, Any] = await response.json()
    assert response.status == 200, answer
    assert response.headers["x-pdmesh-placement"] == PLACEMENT
    assert response.headers["x-request-id"] == "r1"
    return answer


async def events(served: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await served.client.post(path, json={**body, "stream": True})
    text = await response.text()
    assert response.status == 200, text
    assert response.content_type == "text/event-stream"
    assert response.headers["x-pdmesh-placement"] == PLACEMENT
    assert response.headers["x-request-id"] == "r1"
    *chunks, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


async def test_a_chat_answer(serve: Serve, ids: Ids, eos: int) -> None:
    served = await serve(token_by_token([[*ids("Hi 🦊"), eos]]))
    assert await ask(served, CHAT, HELLO) == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "tiny/model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi 🦊", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16, **NOTHING_CACHED},
    }
    (request,) = served.mesh.requests
    assert request.prompt == ids("u:hello\n")
    assert (request.max_tokens, request.stop_tokens, request.sampling.seed) == (92, (eos,), 1001)


async def test_a_plain_answer(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("one")], FinishReason.LENGTH))
    assert await ask(served, PLAIN, PROMPT) == {
        "id": "cmpl-r1",
        "object": "text_completion",
        "created": 1_800_000_000,
        "model": "tiny/model",
        "choices": [{"index": 0, "text": "one", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, **NOTHING_CACHED},
    }
    assert served.mesh.requests[0].max_tokens == 16


async def test_a_streamed_chat(serve: Serve, ids: Ids, eos: int) -> None:
    served = await serve(token_by_token([[*ids("né"), eos]]))
    chunks = await events(served, CHAT, HELLO)
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in chunks} == {
        ("chatcmpl-r1", "chat.completion.chunk", 1_800_000_000, "tiny/model")
    }
    assert [c["choices"] for c in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "n"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "é"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
    ]
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_streamed_plain_completion(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("ab")], FinishReason.LENGTH))
    chunks = await events(served, PLAIN, PROMPT)
    assert [c["choices"] for c in chunks] == [
        [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "b", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
    ]


@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), (PLAIN, PROMPT)])
async def test_usage_comes_last_when_asked_for(serve: Serve, ids: Ids, path: str, body: dict[str, Any]) -> None:
    served = await serve(token_by_token([ids("ab"), ids("cde")], FinishReason.LENGTH))
    chunks = await events(served, path, {**body, "n": 2, "stream_options": {"include_usage": True}})
    assert chunks[-1]["choices"] == []
    prompt = len(served.mesh.requests[0].prompt)
    assert (
        chunks[-1]["usage"]
        == {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5} | NOTHING_CACHED
    )
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), (PLAIN, PROMPT)])
async def test_usage_so_far_in_every_chunk_when_asked_for(
    serve: Serve, ids: Ids, path: str, body: dict[str, Any]
) -> None:
    served = await serve(token_by_token([ids("abcde")], FinishReason.LENGTH))
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = await events(served, path, {**body, "stream_options": options})
    so_far = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk["usage"] is not None]
    assert so_far == [1, 2, 3, 4, 5, 5]  # the last but one says why it ended
    assert last["usage"] == chunks[-1]["usage"]


async def test_one_token_is_one_token(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("x")], FinishReason.LENGTH))
    answer = await ask(served, CHAT, {**HELLO, "max_tokens": 1})
    assert answer["usage"]["completion_tokens"] == 1
    assert answer["choices"][0]["message"]["content"] == "x"
    assert served.mesh.requests[0].max_tokens == 1


@pytest.mark.parametrize("batch", [1, 2, 100])
async def test_a_stop_string_ends_the_answer_and_the_work(serve: Serve, ids: Ids, batch: int) -> None:
    served = await serve(token_by_token([ids("one END two")], batch=batch))
    answer = await ask(served, CHAT, {**HELLO, "stop": [" END", "two"]})
    assert answer["choices"][0]["message"]["content"] == "one"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("one END")
    assert served.mesh.streams[0].is_closed
    assert served.mesh.streams[0].unread == (0 if batch == 100 else len(" two") // batch)


async def test_no_part_of_a_stop_string_is_streamed(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("a END b")]))
    chunks = await events(served, CHAT, {**HELLO, "stop": " END"})
    texts = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert texts == ["", "a", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_choice_that_stopped_leaves_the_others_alone(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("a!bcdef"), ids("uvwxyz")], FinishReason.LENGTH))
    answer = await ask(served, CHAT, {**HELLO, "stop": "!", "n": 2})
    texts = [(c["message"]["content"], c["finish_reason"]) for c in answer["choices"]]
    assert texts == [("a", "stop"), ("uvwxyz", "length")]
    assert answer["usage"]["completion_tokens"] == 2 + 6


def scores(token: int) -> TokenLogprobs:
    return TokenLogprobs(-0.25, ((token, -0.25), (0, -math.inf)))


async def test_chat_logprobs(serve: Serve, ids: Ids, eos: int) -> None:
    served = await serve(token_by_token([[*ids("aé"), eos]], logprobs=scores))
    answer = await ask(served, CHAT, {**HELLO, "logprobs": True, "top_logprobs": 2})
    content = answer["choices"][0]["logprobs"]["content"]
    other = {"token": "!", "logprob": -9999.0, "bytes": [33]}
    first = {"token": "a", "logprob": -0.25, "bytes": [97]}
    assert content[0] == {**first, "top_logprobs": [first, other]}
    assert [entry["token"] for entry in content] == ["a", "bytes:\\xc3", "bytes:\\xa9", "<|end|>"]
    assert [entry["bytes"] for entry in content[1:3]] == [[0xC3], [0xA9]]
    assert served.mesh.requests[0].sampling.logprobs == 2


async def test_streamed_logprobs_are_the_whole_ones(serve: Serve, ids: Ids, eos: int) -> None:
    served = await serve(token_by_token([[*ids("aé"), eos]], logprobs=scores))
    body = {**HELLO, "logprobs": True, "top_logprobs": 2}
    whole = (await ask(served, CHAT, body))["choices"][0]["logprobs"]["content"]
    response = await served.client.post(CHAT, json={**body, "stream": True})
    chunks = [json.loads(line[6:]) for line in (await response.text()).split("\n\n")[:-2]]
    parts = [c["choices"][0]["logprobs"]["content"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [entry for part in parts for entry in part] == whole


async def test_plain_logprobs(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("aé")], FinishReason.LENGTH, logprobs=scores))
    answer = await ask(served, PLAIN, {**PROMPT, "logprobs": 2})
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [-0.25] * 3,
        "top_logprobs": [
            {"a": -0.25, "!": -9999.0},
            {"bytes:\\xc3": -0.25, "!": -9999.0},
            {"bytes:\\xa9": -0.25, "!": -9999.0},
        ],
        "text_offset": [0, 1, 1],
    }


async def test_token_ids_are_a_prompt(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("x")]))
    await ask(served, PLAIN, {**PROMPT, "prompt": [5, 6, 7], "ignore_eos": True})
    assert served.mesh.requests[0].prompt == (5, 6, 7)
    assert served.mesh.requests[0].stop_tokens == ()


async def test_the_split_reaches_the_mesh_where_allowed(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("x")]), allow_placement_override=True)
    await ask(served, CHAT, {**HELLO, "pdmesh": {"split": 17}})
    assert served.mesh.requests[0].split == 17


async def test_a_request_placed_again_shows_its_last_placement(serve: Serve, ids: Ids) -> None:
    def script(request: GenerationRequest) -> list[StreamEvent]:
        return [placed(split=9), placed(), emitted(request, ids("x"), finish=FinishReason.LENGTH)]

    await ask(await serve(script), CHAT, HELLO)


async def test_room_is_what_model_and_instances_allow(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("x")]), context=20)
    await ask(served, CHAT, HELLO)
    assert served.mesh.requests[0].max_tokens == 12
    response = await served.client.post(PLAIN, json={**PROMPT, "max_tokens": 16})
    error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "context_length_exceeded", "max_tokens")
    assert all(number in error["message"] for number in ("20", "5", "16", "21"))


async def test_no_tokeniser_runs_on_the_event_loop(serve: Serve, ids: Ids, eos: int) -> None:
    served = await serve(token_by_token([[*ids("abc"), eos]], logprobs=scores))
    await ask(served, CHAT, {**HELLO, "logprobs": True})
    await served.client.post(PLAIN, json={**PROMPT, "stream": True})
    assert served.spy.threads
    assert threading.get_ident() not in served.spy.threads


async def test_the_observer_sees_each_thing_once(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("ab")], FinishReason.LENGTH))
    await ask(served, CHAT, HELLO)
    assert served.observer.notes == [
        ("started", "r1", "chat_completions", 8),
        ("first_token", "r1", 0.0),
        ("token", "r1", 1, None),
        ("token", "r1", 1, 0.0),
        ("finished", "r1", 2, 0.0),
    ]


async def test_models(serve: Serve, ids: Ids) -> None:
    served = await serve(token_by_token([ids("x")]))
    entry = {"id": "tiny/model", "object": "model", "created": 1_700_000_000, "owned_by": "pdmesh"}
    everything = await (await served.client.get("/v1/models")).json()
    assert everything == {"object": "list", "data": [entry]}
    assert await (await served.client.get("/v1/models/tiny/model")).json() == entry
    missing = await served.client.get("/v1/models/other")
    assert (missing.status, (await missing.json())["error"]["code"]) == (404, "model_not_found")


async def test_health_and_readiness(serve: Serve, ids: Ids) -> None:
    ready = await serve(token_by_token([ids("x")]))
    assert (await ready.client.get("/health")).status == 200
    assert (await ready.client.get("/ready")).status == 200
    waiting = await serve(token_by_token([ids("x")]), reason="no decode instance has joined")
    assert (await waiting.client.get("/health")).status == 200
    response = await waiting.client.get("/ready")
    assert response.status == 503
    assert (await response.json())["reason"] == "no decode instance has joined"
