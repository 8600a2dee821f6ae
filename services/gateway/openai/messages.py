"""One message of a conversation, from the API's form to what chat templates read."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from services.gateway.openai.errors import invalid
from services.gateway.openai.tools import ToolCallFields
from services.gateway.openai.types import MessageFields

_ROLES: Final = MappingProxyType({"developer": "system"})
"""Newer clients say developer; the models' templates know system."""


def template_message(fields: MessageFields, where: str) -> dict[str, Any]:
    """The message that stands at `where` in the request; ApiError names what is wrong in it.

    Arguments of earlier calls become objects, as templates expect them.
    """
    _check_role(fields, where)
    role = _ROLES.get(fields.role, fields.role)
    message: dict[str, Any] = {"role": role, "content": _content(fields, f"{where}.content")}
    if fields.name is not None:
        message["name"] = fields.name
    if fields.tool_call_id is not None:
        message["tool_call_id"] = fields.tool_call_id
    if fields.tool_calls:
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(fields.tool_calls)]
    return message


def _check_role(fields: MessageFields, where: str) -> None:
    if fields.tool_calls is not None and (fields.role != "assistant" or not fields.tool_calls):
        raise invalid(
            f"{where}.tool_calls: messages of role 'assistant' alone have calls, at least one where there are any; "
            "leave it out",
            f"{where}.tool_calls",
        )
    if (fields.tool_call_id is None) == (fields.role == "tool"):
        raise invalid(
            f"{where}.tool_call_id: a message of role 'tool', and no other, says which call it answers",
            f"{where}.tool_call_id",
        )


def _content(fields: MessageFields, where: str) -> str:
    """Text parts are joined by line ends, as other servers of open models do."""
    if fields.content is None:
        if fields.tool_calls:
            return ""
        raise invalid(f"{where} is missing; only an assistant's message with tool_calls may have none", where)
    if isinstance(fields.content, str):
        return fields.content
    return "\n".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(fields.content))


def _part_text(part: Mapping[str, Any], where: str) -> str:
    match part:
        case {"type": "text", "text": str(text)} if len(part) == 2:
            return text
        case {"type": "text"}:
            raise invalid(f"{where}: a text part is {{'type': 'text', 'text': '...'}}, got {part!r}", where)
        case {"type": kind}:
            raise invalid(
                f"{where}.type: {kind!r} is not supported; this model reads 'text' parts only", f"{where}.type"
            )
        case _:
            raise invalid(f"{where}.type is missing; every part says its type", f"{where}.type")


def _call(fields: ToolCallFields, where: str) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(fields.function.arguments, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        place = f"{where}.function.arguments"
        raise invalid(f"{place} is not the text of a JSON object: {error}", place) from error
    return {
        "id": fields.id,
        "type": "function",
        "function": {"name": fields.function.name, "arguments": arguments},
    }
