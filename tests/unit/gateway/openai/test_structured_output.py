"""response_format and tools in a request: what becomes of them, and every way they can be wrong."""

import json
from typing import Any

import pytest

from common.ids import RequestId
from services.gateway.openai.errors import ApiError
from services.gateway.openai.planning import Context, plan_request
from services.gateway.openai.requests import Call, CallRules, ChatPrompt, parse_chat

RULES = CallRules("m", allow_placement_override=False, vocab_size=256)
LOOK = {"name": "look", "parameters": {"properties": {"at": {"const": None}}}}
WALK = {"name": "walk", "description": "Goes.", "strict": True}
TOOLS = [{"type": "function", "function": LOOK}, {"type": "function", "function": WALK}]
SCHEMA = {"type": "object", "properties": {"a": {"const": None}}}


def schema_format(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema} | more}


def chat(**fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    return parse_chat(json.dumps({**body, **fields}).encode(), RULES, 77)


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "tools": None, "tool_choice": None, "parallel_tool_calls": None},
        {"tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": False},
        {"tools": TOOLS, "tool_choice": "none"},
    ],
)
def test_any_text(fields: dict[str, Any]) -> None:
    call = chat(**fields)
    assert (call.sampling.grammar, call.structure.parts, call.structure.may_call) == ("", (), False)
    (prompt,) = call.prompts
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools == ()


def test_json_is_a_grammar_and_a_null_in_a_schema_stays() -> None:
    call = chat(response_format=schema_format(strict=None, description=None))
    assert '"const":null' in call.sampling.grammar
    assert [part.param for part in call.structure.parts] == ["response_format.json_schema.schema"]
    assert call.structure.parts[0].grammar == call.sampling.grammar
    assert not call.structure.may_call
    assert chat(response_format={"type": "json_object"}).structure.parts[0].param == "response_format"


def test_tools_are_told_and_checked_one_by_one() -> None:
    call = chat(tools=TOOLS)
    (prompt,) = call.prompts
    assert isinstance(prompt, ChatPrompt)
    assert [tool.name for tool in prompt.tools] == ["look", "walk"]
    assert prompt.tools[0].parameters["type"] == "object"
    assert call.structure.may_call
    assert not prompt.must_call
    params = [part.param for part in call.structure.parts]
    assert params == ["tools[0].function.parameters", "tools[1].function.parameters", "tools"]
    assert call.structure.parts[-1].grammar == call.sampling.grammar


def test_a_named_tool_is_the_only_one_in_the_grammar() -> None:
    named = {"type": "function", "function": {"name": "walk"}}
    call = chat(tools=TOOLS, tool_choice=named)
    assert "look" not in call.sampling.grammar
    assert "more" not in call.sampling.grammar
    assert [part.param for part in call.structure.parts] == ["tools[1].function.parameters", "tools"]
    assert len(call.prompts[0].tools) == 2  # type: ignore[union-attr]


def test_parallel_calls_and_a_schema_beside_tools() -> None:
    assert "more{0,15}" in chat(tools=TOOLS, tool_choice="required").sampling.grammar
    assert "more" not in chat(tools=TOOLS, parallel_tool_calls=False).sampling.grammar
    both = chat(tools=TOOLS, response_format=schema_format())
    assert "start: answer |" in both.sampling.grammar
    assert "response_format.json_schema.schema" in [part.param for part in both.structure.parts]
    required = chat(tools=TOOLS, response_format=schema_format(), tool_choice="required")
    assert "answer" not in required.sampling.grammar


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"response_format": schema_format(5)}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": schema_format({"enum": ["x" * 70_000]})}, "response_format.json_schema.schema"),
        ({"tools": []}, "tools"),
        ({"tools": [TOOLS[0]] * 2}, "tools[1]"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a.b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"enum": ["x" * 70_000]}}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}},
            "tool_choice.function.name",
        ),
        ({"functions": []}, "functions"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    # msgspec does not say which item of a list it means.
    assert error.body.param in (param, param.replace("[0]", ""))


def talk(*messages: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    (prompt,) = chat(messages=[{"role": "user", "content": "hello"}, *messages]).prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages[1:]


def called(arguments: str = '{"at": 1}', **more: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


def test_calls_and_results_are_turns_of_the_conversation() -> None:
    first, second = talk(called(), {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sea"}]})
    assert first["content"] == ""
    assert first["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 1}}
    assert second == {"role": "tool", "content": "sea", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (called("[1]"), "messages[0].tool_calls[0].function.arguments"),
        (called("{"), "messages[0].tool_calls[0].function.arguments"),
        (called(role="user", content="x"), "messages[0].tool_calls"),
        ({"role": "assistant", "content": "x", "tool_calls": []}, "messages[0].tool_calls"),
        ({"role": "assistant"}, "messages[0].content"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "tool", "tool_call_id": "c1"}, "messages[0].content"),
        ({"role": "user", "content": "x", "tool_call_id": "c1"}, "messages[0].tool_call_id"),
    ],
)
def test_a_turn_that_is_wrong_is_named(message: dict[str, Any], param: str) -> None:
    assert refused(messages=[message]).body.param == param


def test_ignore_eos_does_not_outlast_a_grammar() -> None:
    call = chat(response_format={"type": "json_object"}, ignore_eos=True, max_tokens=5)
    request = plan_request(call, RequestId("r"), 0, (1, 2), Context(100, 100), frozenset({7}))
    assert request.stop_tokens == (7,)
    assert request.min_tokens >= request.max_tokens
    assert (
        plan_request(chat(ignore_eos=True), RequestId("r"), 0, (1, 2), Context(100, 100), frozenset({7})).stop_tokens
        == ()
    )
