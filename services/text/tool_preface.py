"""Tools for models whose chat template knows none: told in the system message, calls and results as plain turns."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from services.text.tools import Tool, called

Message = Mapping[str, Any]

_PREFACE: Final = """\
You may call functions to help with the request. These are the functions, one JSON object a line:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments in this form, and with nothing after it:
{example}"""

_MUST: Final = "\nAnswer this request with a call."


def preface(tools: Sequence[Tool], *, must_call: bool) -> str:
    """What the system message says about `tools`."""
    lines = "\n".join(msgspec.json.encode(tool.described()["function"]).decode() for tool in tools)
    text = _PREFACE.format(tools=lines, example=called("FUNCTION", {"ARGUMENT": "VALUE"}))
    return text + _MUST if must_call else text


def plain_messages(messages: Sequence[Message], tools: Sequence[Tool], *, must_call: bool) -> list[dict[str, Any]]:
    """The conversation for a template of system, user and assistant turns only, `tools` told in the first."""
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    told = preface(tools, must_call=must_call)
    if plain and plain[0].get("role") == "system":
        first = plain[0]
        return [{**first, "content": f"{first['content']}\n\n{told}"}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]


def _plain(message: Message) -> dict[str, Any]:
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if calls := message.get("tool_calls"):
        words = [message["content"]] if message["content"] else []
        words += [called(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        return {"role": message["role"], "content": "\n".join(words)}
    return dict(message)
