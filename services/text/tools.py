"""Functions that a model may call, and the one form in which it calls them. Pure.

    <tool_call>
    {"name": "NAME", "arguments": {...}}
    </tool_call>

Hermes and Qwen were trained on it; other models are told of it (tool_preface). The grammar holds every model to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from services.text.json_grammar import json_rule

MOST_CALLS: Final = 16
"""In one answer."""

OPENING: Final = "<tool_call>"
NAME_HEAD: Final = '\n{"name": "'
ARGUMENTS_HEAD: Final = '", "arguments": '
CLOSING: Final = "}\n</tool_call>"
BETWEEN: Final = "\n"
"""A call is OPENING, NAME_HEAD, its name, ARGUMENTS_HEAD, a JSON object and CLOSING; BETWEEN stands between two."""


class Tool(msgspec.Struct, frozen=True):
    """A function. `name` is of letters, digits, `_` and `-`; `parameters` a JSON Schema of an object."""

    name: str
    parameters: dict[str, Any]
    description: str = ""

    def described(self) -> dict[str, Any]:
        """As templates and models know it: the API's own form."""
        about = {"description": self.description} if self.description else {}
        return {"type": "function", "function": {"name": self.name, **about, "parameters": self.parameters}}


def called(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of one call."""
    encoded = msgspec.json.encode(arguments).decode()
    return f"{OPENING}{NAME_HEAD}{name}{ARGUMENTS_HEAD}{encoded}{CLOSING}"


def parameters_grammar(tool: Tool) -> str:
    """The grammar of the tool's arguments alone, to find out which tool's schema is at fault. Raises GrammarRefused."""
    return f"start: arguments\narguments: {json_rule(tool.parameters)}\n"


def calls_grammar(
    tools: Sequence[Tool], *, must_call: bool, most_calls: int = MOST_CALLS, answer: str | None = None
) -> str:
    """The grammar of an answer that calls tools: 1 to `most_calls`, after any text or none, and nothing after them.

    With `must_call` there is nothing but calls; without, there may be none: then the answer is any text, or what the
    rule `answer` matches, where there is one.  Raises GrammarRefused.
    """
    more = f"more{{0,{most_calls - 1}}}" if most_calls > 1 else ""
    names = " | ".join(f"call_{i}" for i in range(len(tools)))
    if must_call:
        rules = [f"start: {_quoted(OPENING)} call {more}"]
    elif answer is not None:
        rules = [f"start: answer | {_quoted(OPENING)} call {more}", f"answer: {answer}"]
    else:
        # Lazy: the marker begins a call as soon as it is there, so that TEXT never holds one.
        rules = [
            f"start: TEXT | opening call {more}",
            "TEXT: /(?s:.*)/",
            f"opening[lazy]: /(?s:.*){OPENING}/",
        ]
    rules.append(f"call: {names}")
    if more:
        rules.append(f"more: {_quoted(BETWEEN + OPENING)} call")
    for i, tool in enumerate(tools):
        head = _quoted(f"{NAME_HEAD}{tool.name}{ARGUMENTS_HEAD}")
        rules.append(f"call_{i}: {head} arguments_{i} {_quoted(CLOSING)}")
        rules.append(f"arguments_{i}: {json_rule(tool.parameters)}")
    return "\n".join([*rules, ""])


def _quoted(text: str) -> str:
    """A literal of the grammar: JSON's escapes are its escapes."""
    return msgspec.json.encode(text).decode()
