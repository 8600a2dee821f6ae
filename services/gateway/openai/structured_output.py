"""What a chat request asks of the form of its answer: response_format and tools become a grammar. Pure."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from common.errors import GrammarRefused
from services.gateway.openai.errors import invalid
from services.gateway.openai.tools import JsonObjectFormat, JsonSchemaFormat, NamedToolChoice, ToolFields
from services.gateway.openai.types import ChatFields
from services.text.json_grammar import ANY_OBJECT, json_grammar, json_rule
from services.text.tools import MOST_CALLS, Tool, calls_grammar, parameters_grammar

T = TypeVar("T")


class GrammarPart(msgspec.Struct, frozen=True):
    """A grammar to be compiled before the request is placed, and the parameter that is at fault where it cannot be."""

    param: str
    grammar: str


class Structure(msgspec.Struct, frozen=True):
    """The form of an answer."""

    grammar: str = ""
    """See SamplingParams.grammar."""
    parts: tuple[GrammarPart, ...] = ()
    """What the grammar is made of, the whole last."""
    tools: tuple[Tool, ...] = ()
    """What the model is told of."""
    must_call: bool = False
    may_call: bool = False
    """Calls are to be read in the answer."""


ANY_TEXT = Structure()


def structure_of(fields: ChatFields) -> Structure:
    """The form that `fields` ask for; ApiError."""
    tools = _tools(fields)
    choice = fields.tool_choice or "auto"
    _check_choice(choice, tools)
    schema, param = _schema(fields)
    if not tools or choice == "none":
        if schema is None:
            return ANY_TEXT
        part = GrammarPart(param, _within_bounds(param, lambda: json_grammar(schema)))
        return Structure(part.grammar, (part,))
    callable_tools = _callable(tools, choice)
    must_call = choice != "auto"
    parts = [
        GrammarPart(place, _within_bounds(place, lambda tool=tool: parameters_grammar(tool)))  # type: ignore[misc]
        for place, tool in callable_tools.items()
    ]
    answer = None
    if schema is not None and not must_call:
        answer = _within_bounds(param, lambda: json_rule(schema))
        parts.append(GrammarPart(param, json_grammar(schema)))
    is_single = isinstance(choice, NamedToolChoice) or fields.parallel_tool_calls is False
    grammar = calls_grammar(
        list(callable_tools.values()), must_call=must_call, most_calls=1 if is_single else MOST_CALLS, answer=answer
    )
    return Structure(grammar, (*parts, GrammarPart("tools", grammar)), tools, must_call, may_call=True)


def _schema(fields: ChatFields) -> tuple[Mapping[str, Any] | None, str]:
    match fields.response_format:
        case JsonObjectFormat():
            return ANY_OBJECT, "response_format"
        case JsonSchemaFormat(json_schema=named):
            return named.schema, "response_format.json_schema.schema"
        case _:
            return None, "response_format"


def _tools(fields: ChatFields) -> tuple[Tool, ...]:
    tools = tuple(_tool(tool, f"tools[{i}].function") for i, tool in enumerate(fields.tools or ()))
    names = [tool.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise invalid(f"tools[{i}].function.name={name!r} is there twice; names tell tools apart", f"tools[{i}]")
    return tools


def _tool(fields: ToolFields, where: str) -> Tool:
    function = fields.function
    kind = function.parameters.get("type", "object")
    if kind != "object":
        raise invalid(
            f"{where}.parameters.type={kind!r}: the arguments of a function are an object; say 'object'",
            f"{where}.parameters",
        )
    return Tool(function.name, {**function.parameters, "type": "object"}, function.description or "")


def _check_choice(choice: str | NamedToolChoice, tools: tuple[Tool, ...]) -> None:
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        if name not in [tool.name for tool in tools]:
            raise invalid(
                f"tool_choice.function.name={name!r} is not among the tools; name one of them",
                "tool_choice.function.name",
            )
    elif choice == "required" and not tools:
        raise invalid("tool_choice='required' is allowed with tools only", "tool_choice")


def _callable(tools: tuple[Tool, ...], choice: str | NamedToolChoice) -> dict[str, Tool]:
    """The tools that the answer may call, by the place of their parameters in the request."""
    return {
        f"tools[{i}].function.parameters": tool
        for i, tool in enumerate(tools)
        if not isinstance(choice, NamedToolChoice) or tool.name == choice.function.name
    }


def _within_bounds(param: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except GrammarRefused as error:
        raise invalid(f"{param}: {error}", param) from error
