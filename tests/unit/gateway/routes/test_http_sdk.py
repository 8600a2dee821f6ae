"""The openai SDK as the client."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest

from common.errors import Failure, FailureKind
from common.messages.control import FinishReason
from common.messages.sampling import TokenLogprobs
from services.gateway.stream import Failed, GenerationRequest, StreamEvent
from services.gateway.testing import emitted, placed, token_by_token

Ids = Callable[[str], tuple[int, ...]]
Serve = Callable[..., Awaitable[Any]]
Connect = Callable[[Any], openai.AsyncOpenAI]

MODEL = "tiny/model"
MESSAGES: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[openai.AsyncOpenAI] = []

    def make(served: Any) -> openai.AsyncOpenAI:
        clients.append(openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


def scores(token: int) -> TokenLogprobs:
    return TokenLogprobs(-0.5, ((token, -0.5),))


async def test_three_whole_answers_with_logprobs(serve: Serve, connect: Connect, ids: Ids, eos: int) -> None:
    answers = [[*ids(text), eos] for text in ("one", "two🦊", "three")]
    client = connect(await serve(token_by_token(answers, logprobs=scores)))
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=3, seed=5, logprobs=True, top_logprobs=1, stop=["#"], user="me"
    )
    assert [choice.message.content for choice in answer.choices] == ["one", "two🦊", "three"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 + 8 + 6
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.token for entry in logprobs.content] == ["o", "n", "e", "<|end|>"]


async def test_three_streamed_answers(serve: Serve, connect: Connect, ids: Ids, eos: int) -> None:
    answers = [[*ids(text), eos] for text in ("one", "two🦊", "three")]
    client = connect(await serve(token_by_token(answers)))
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=3, stream=True, stream_options={"include_usage": True}
    )
    texts, finishes, usages = ["", "", ""], {}, []
    async for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert texts == ["one", "two🦊", "three"]
    assert finishes == {0: "stop", 1: "stop", 2: "stop"}
    assert usages[-1] is not None
    assert usages[-1].completion_tokens == 18


async def test_the_streaming_helper_understands_our_events(serve: Serve, connect: Connect, ids: Ids) -> None:
    client = connect(await serve(token_by_token([ids("hello END x")])))
    async with client.chat.completions.stream(model=MODEL, messages=MESSAGES, stop=" END") as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "hello"
    assert final.choices[0].finish_reason == "stop"


async def test_plain_completions(serve: Serve, connect: Connect, ids: Ids) -> None:
    client = connect(await serve(token_by_token([ids("abc")], FinishReason.LENGTH, logprobs=scores)))
    answer = await client.completions.create(model=MODEL, prompt="hello", logprobs=1, max_tokens=3)
    assert answer.choices[0].text == "abc"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2]
    stream = await client.completions.create(model=MODEL, prompt="hello", max_tokens=3, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "abc"


async def test_headers_and_models(serve: Serve, connect: Connect, ids: Ids) -> None:
    client = connect(await serve(token_by_token([ids("abc")])))
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
    assert raw.headers["x-pdmesh-placement"].startswith("prefill=p0; decode=d0; split=3")
    assert raw.parse()._request_id == "r1"
    assert [model.id async for model in client.models.list()] == [MODEL]


async def test_errors_are_the_sdks_own(serve: Serve, connect: Connect) -> None:
    def overloaded(_: GenerationRequest) -> list[StreamEvent]:
        return [Failed(Failure(FailureKind.OVERLOADED, "the queue of 256 is full"))]

    client = connect(await serve(overloaded))
    with pytest.raises(openai.RateLimitError, match="queue of 256"):
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[])
    assert caught.value.param == "tools"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="other", messages=MESSAGES)


async def test_a_broken_stream_raises(serve: Serve, connect: Connect, ids: Ids) -> None:
    def script(request: GenerationRequest) -> list[StreamEvent]:
        return [placed(), emitted(request, ids("ab")), Failed(Failure(FailureKind.DECODE_LOST, "d0 is gone"))]

    client = connect(await serve(script))
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="d0 is gone"):
        _ = [chunk async for chunk in stream]
