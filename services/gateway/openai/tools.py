"""Structured output and tools as OpenAI's chat API takes and gives them, as types. Field names are that API's."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]

# ---------------------------------------------------------------- requests


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class TextFormat(_Fields, frozen=True, tag_field="type", tag="text"):
    """Any text: what is given without response_format."""


class JsonObjectFormat(_Fields, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(_Fields, frozen=True):
    """A JSON Schema with a name; `strict` has no effect, every schema is kept to."""

    name: FunctionName
    description: str | None = None
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool | None = None


class JsonSchemaFormat(_Fields, frozen=True, tag_field="type", tag="json_schema"):
    """JSON of a schema."""

    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class FunctionFields(_Fields, frozen=True):
    """A function that may be called; `strict` has no effect, arguments are always kept to the schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {}, "additionalProperties": False}
    )
    strict: bool | None = None


class ToolFields(_Fields, frozen=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionFields


class FunctionChoice(_Fields, frozen=True):
    """The name of a function among the tools."""

    name: str


class NamedToolChoice(_Fields, frozen=True):
    """This function must be called."""

    type: Literal["function"]
    function: FunctionChoice


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class CalledFunctionFields(_Fields, frozen=True):
    """A call of an earlier answer; `arguments` is the text of a JSON object."""

    name: str
    arguments: str
    parsed_arguments: Any = None
    """What the openai SDK adds to calls that it has parsed; without effect."""


class ToolCallFields(_Fields, frozen=True):
    """A call in an assistant's message, as an answer gave it."""

    id: str
    type: Literal["function"]
    function: CalledFunctionFields


# ---------------------------------------------------------------- answers


class CalledFunction(msgspec.Struct, frozen=True):
    """What is called; `arguments` is the text of a JSON object, cut off where the answer was."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """One call of an answer."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a call; the first one of a call has its name."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to the call `index`; the first one of a call has its id."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
