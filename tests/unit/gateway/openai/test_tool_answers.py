"""Answers that call tools, through HTTP and the openai SDK, from a scripted mesh."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest

from common.messages.control import FinishReason
from common.messages.sampling import TokenLogprobs
from services.gateway.testing import token_by_token
from services.text.tools import called

Ids = Callable[[str], tuple[int, ...]]
Serve = Callable[..., Awaitable[Any]]
Connect = Callable[[Any], openai.AsyncOpenAI]

LOOK: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
ASKED: Any = {"model": "tiny/model", "messages": [{"role": "user", "content": "hi"}], "tools": [LOOK]}
TEXT = f"Let me see.\n{called('look', {'at': 'the sea'})}\n{called('look', {'a': ['}']})}"
CALLS = [("look", '{"at":"the sea"}'), ("look", '{"a":["}"]}')]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[openai.AsyncOpenAI] = []

    def make(served: Any) -> openai.AsyncOpenAI:
        clients.append(openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def room() -> dict[str, Any]:
    """The tiny model's context has no room for the words about tools."""
    return {"template": "{{ messages[-1].content }}"}


async def test_a_whole_answer_with_words_and_two_calls(
    serve: Serve, connect: Connect, ids: Ids, eos: int, room: dict[str, Any]
) -> None:
    client = connect(await serve(token_by_token([[*ids(TEXT), eos], [*ids("No."), eos]], batch=50), **room))
    answer = await client.chat.completions.create(**ASKED, n=2)
    first, second = answer.choices
    assert first.message.content == "Let me see."
    assert first.finish_reason == "tool_calls"
    calls: Any = first.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == CALLS
    assert len({call.id for call in calls}) == 2
    assert (second.message.content, second.message.tool_calls, second.finish_reason) == ("No.", None, "stop")


@pytest.mark.parametrize("batch", [1, 7, 1000])
async def test_a_stream_of_calls(
    serve: Serve, connect: Connect, ids: Ids, eos: int, room: dict[str, Any], batch: int
) -> None:
    script = token_by_token([[*ids(TEXT), eos]], batch=batch, logprobs=lambda token: TokenLogprobs(-1.0))
    client = connect(await serve(script, **room))
    content, calls, finishes, scored = "", [], [], 0
    async for chunk in await client.chat.completions.create(**ASKED, stream=True, logprobs=True):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            scored += len((choice.logprobs and choice.logprobs.content) or ())
            finishes += [choice.finish_reason] if choice.finish_reason else []
            for delta in choice.delta.tool_calls or ():
                assert delta.function is not None
                if delta.id is not None:
                    assert (delta.index, delta.type, delta.function.arguments) == (len(calls), "function", "")
                    calls.append([delta.function.name, ""])
                else:
                    assert delta.function.name is None
                    calls[delta.index][1] += delta.function.arguments or ""
    assert content == "Let me see."
    assert [tuple(call) for call in calls] == CALLS
    assert finishes == ["tool_calls"]
    assert scored == len(ids(TEXT)) + 1


async def test_the_streaming_helper_puts_calls_together(
    serve: Serve, connect: Connect, ids: Ids, eos: int, room: dict[str, Any]
) -> None:
    client = connect(await serve(token_by_token([[*ids(TEXT), eos]], batch=3), **room))
    async with client.chat.completions.stream(**ASKED) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == CALLS


async def test_a_call_that_is_cut_off_has_finished_by_length(
    serve: Serve, connect: Connect, ids: Ids, room: dict[str, Any]
) -> None:
    cut = ids(TEXT)[: TEXT.index("the sea")]
    client = connect(await serve(token_by_token([cut], FinishReason.LENGTH), **room))
    choice = (await client.chat.completions.create(**ASKED)).choices[0]
    assert choice.finish_reason == "length"
    calls: Any = choice.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [("look", '{"at":"')]


async def test_text_that_looks_like_a_call_is_text_where_no_tools_were_given(
    serve: Serve, connect: Connect, ids: Ids, eos: int
) -> None:
    client = connect(await serve(token_by_token([[*ids(TEXT), eos]])))
    for more in ({"tools": openai.omit}, {"tool_choice": "none"}):
        choice = (await client.chat.completions.create(**{**ASKED, **more})).choices[0]
        assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")


async def test_the_mesh_is_given_the_grammar_and_the_model_the_tools(
    serve: Serve, connect: Connect, ids: Ids, eos: int, room: dict[str, Any]
) -> None:
    script = token_by_token([[*ids(TEXT), eos]])
    served = await serve(script, **room)
    await connect(served).chat.completions.create(**ASKED)
    (request,) = served.mesh.requests
    assert 'name\\": \\"look' in request.sampling.grammar
    # With the tiny model's own template the words about tools have no room.
    with pytest.raises(openai.BadRequestError, match="context length is 100 tokens"):
        await connect(await serve(script)).chat.completions.create(**ASKED)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"tools": [LOOK, {"type": "function", "function": {"name": "b", "parameters": {"not": {}}}}]},
            "tools[1].function.parameters",
        ),
    ],
)
async def test_a_schema_that_cannot_be_kept_to_is_a_400_before_the_mesh_is_asked(
    serve: Serve, connect: Connect, fields: dict[str, Any], param: str
) -> None:
    served = await serve(token_by_token([[1]]))
    with pytest.raises(openai.BadRequestError) as caught:
        await connect(served).chat.completions.create(**{**ASKED, **fields})
    assert caught.value.param == param
    assert "not" in json.dumps(caught.value.body)
    assert served.mesh.requests == []
