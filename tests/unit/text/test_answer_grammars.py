"""The grammars of answers, tried against the library: what they take, what they do not, and what is too large."""

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from common.errors import GrammarRefused
from common.grammar import MOST_GRAMMAR_CHARACTERS, compiled
from services.text.json_grammar import ANY_OBJECT, MOST_SCHEMA_BYTES, MOST_SCHEMA_DEPTH, json_grammar, json_rule
from services.text.tools import BETWEEN, MOST_CALLS, Tool, called, calls_grammar

BYTES = LLTokenizer("byte")

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LOOK = Tool("look", {**PERSON, "description": 'with "quotes" and a % sign'})
WALK = Tool(
    "look-and_walk",
    {
        "type": "object",
        "properties": {"way": {"$ref": "#/$defs/way"}},
        "required": ["way"],
        "additionalProperties": False,
        "$defs": {"way": {"enum": ["left", "right"]}},
    },
)


def takes(grammar: str, text: str) -> bool:
    """Whether `text` is a whole answer."""
    matcher = compiled(grammar, BYTES)
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def begins(grammar: str, text: str) -> bool:
    """Whether an answer can begin with `text`."""
    tokens = list(text.encode())
    return compiled(grammar, BYTES).try_consume_tokens(tokens) == len(tokens)


def test_json_of_a_schema_with_one_space_at_most() -> None:
    grammar = json_grammar(PERSON)
    assert takes(grammar, '{"name": "Ada", "age": 36}')
    assert takes(grammar, '{"name":"","age":0}')
    for wrong in ('{"name":  "Ada", "age": 36}', '{\n"name": "Ada", "age": 36}', '{"age": 36, "name": "Ada"}'):
        assert not begins(grammar, wrong)
    for wrong in ('{"name": "Adalbert', '{"name": "Ada", "age": 100', '{"name": "Ada", "x"', " {", "[]"):
        assert not begins(grammar, wrong)
    assert not takes(grammar, '{"name": "Ada", "age": 36')


def test_any_object_is_an_object() -> None:
    grammar = json_grammar(ANY_OBJECT)
    assert takes(grammar, '{"a": [1, {"b": null}], "c": "é\\n"}')
    assert not begins(grammar, "[")


def test_the_style_is_not_the_clients_to_choose() -> None:
    assert not begins(json_grammar({**PERSON, "x-guidance": {"whitespace_flexible": True}}), '{ "name"')


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "not": {}}, "not"),
        ({"type": "string", "format": "nonsense"}, "nonsense"),
        ({"type": "string", "pattern": "(?=a)"}, "look"),
        ({"type": "strange"}, "strange"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, ""),
    ],
)
def test_what_the_library_does_not_do_is_refused_in_its_words(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(GrammarRefused) as caught:
        compiled(json_grammar(schema), BYTES)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_size_and_depth_are_bounded() -> None:
    json_rule(nested(MOST_SCHEMA_DEPTH))
    with pytest.raises(GrammarRefused, match=f"more than {MOST_SCHEMA_DEPTH} levels"):
        json_rule(nested(MOST_SCHEMA_DEPTH + 1))
    with pytest.raises(GrammarRefused, match=f"the limit is {MOST_SCHEMA_BYTES}"):
        json_rule({"enum": ["x" * MOST_SCHEMA_BYTES]})
    with pytest.raises(GrammarRefused, match=f"the limit is {MOST_GRAMMAR_CHARACTERS}"):
        compiled(" " * (MOST_GRAMMAR_CHARACTERS + 1), BYTES)


def test_one_call_and_nothing_else() -> None:
    grammar = calls_grammar([LOOK, WALK], must_call=True, most_calls=1)
    assert takes(grammar, called("look", {"name": "Ada", "age": 3}))
    assert takes(grammar, called("look-and_walk", {"way": "left"}))
    assert not begins(grammar, called("look-and_walk", {"way": "up"}))
    assert not begins(grammar, "Hello")
    assert not begins(grammar, '<tool_call>\n{"name": "look-a"')
    assert not begins(grammar, called("look-and_walk", {"way": "left"}) + "\n")


def test_calls_are_bounded_in_number() -> None:
    grammar = calls_grammar([WALK], must_call=True)
    call = called("look-and_walk", {"way": "left"})
    assert takes(grammar, BETWEEN.join([call] * MOST_CALLS))
    assert not begins(grammar, BETWEEN.join([call] * (MOST_CALLS + 1)))


def test_text_or_calls() -> None:
    grammar = calls_grammar([LOOK, WALK], must_call=False)
    call = called("look-and_walk", {"way": "right"})
    for text in ("", "Hello < tool_call> 日本\n\n{", "<tool_call", call, f"I look:\n{call}", f"{call}\n{call}"):
        assert takes(grammar, text), text
    # The marker begins a call, and after a call there is nothing else.
    assert not begins(grammar, "<tool_call> is a marker")
    assert not begins(grammar, f"{call} and")
    assert not takes(grammar, "<tool_call>")


def test_an_answer_of_a_schema_or_calls() -> None:
    grammar = calls_grammar([WALK], must_call=False, answer=json_rule(PERSON))
    assert takes(grammar, '{"name": "Ada", "age": 36}')
    assert takes(grammar, called("look-and_walk", {"way": "right"}))
    assert not begins(grammar, "Hello")


def test_many_tools_with_large_schemas_compile() -> None:
    properties = {f"p{i}": {"type": "string", "description": "x" * 50} for i in range(20)}
    tools = [Tool(f"tool_{i}", {"type": "object", "properties": properties}) for i in range(64)]
    assert begins(calls_grammar(tools, must_call=True), '<tool_call>\n{"name": "tool_63", "arguments": {"p0": "a"')


def test_it_is_json_that_json_reads() -> None:
    assert json.loads(called("look", {"a": "</tool_call>"}).split("\n")[1]) == {
        "name": "look",
        "arguments": {"a": "</tool_call>"},
    }
