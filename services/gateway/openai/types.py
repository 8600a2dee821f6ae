"""What OpenAI's completions API takes and gives, as types. Field names and nulls are that API's."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from services.gateway.openai.tools import (
    ResponseFormat,
    ToolCall,
    ToolCallDelta,
    ToolCallFields,
    ToolChoice,
    ToolFields,
)

# ---------------------------------------------------------------- requests

PositiveInt = Annotated[int, Meta(ge=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]

_TOKEN_IDS = {"propertyNames": {"pattern": "^(0|[1-9][0-9]*)$"}}
_PROMPT_LISTS = {
    "anyOf": [
        {"items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"items": {"type": "string"}, "minItems": 1},
        {"items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}, "minItems": 1},
    ]
}
"""Token ids, texts, or lists of token ids, in words of JSON Schema: three kinds of lists are beyond one annotation."""


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class StreamOptions(_Fields, frozen=True):
    """Allowed with stream=true only."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    """vLLM's: with include_usage, every chunk of text tells the usage so far."""


class PlacementFields(_Fields, frozen=True):
    """pdmesh's own parameter: where the request runs."""

    split: Literal["full"] | Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0, le=1)] | None = None


class GenerationFields(_Fields, frozen=True, kw_only=True):
    """The parameters that both kinds of completion take."""

    model: str
    max_tokens: PositiveInt | None = None
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = 0
    """0 and -1 keep all. The bound is the wire's business: MessagePack has no integers of more than 64 bits."""
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[int, Bias], Meta(max_length=1024, extra_json_schema=_TOKEN_IDS)] = {}
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[tuple[StopString, ...], Meta(max_length=16)] = ()
    ignore_eos: bool = False
    n: Annotated[int, Meta(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    pdmesh: PlacementFields | None = None
    user: str = ""


class MessageFields(_Fields, frozen=True):
    """One message of a conversation; `content` is text, or parts that are all text. Without any: calls alone."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCallFields, ...] | None = None
    """Of an assistant's message."""
    tool_call_id: str | None = None
    """Of a tool's message: the call whose result it is."""
    parsed: Any = None
    """What the openai SDK adds to answers that it has parsed; without effect."""


class ChatFields(GenerationFields, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[tuple[MessageFields, ...], Meta(min_length=1)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    top_logprobs: Alternatives | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[tuple[ToolFields, ...], Meta(min_length=1, max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    """None: auto."""
    parallel_tool_calls: bool | None = None
    """None: as with true, an answer may have several calls."""


class CompletionFields(GenerationFields, frozen=True, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | Annotated[list[Any], Meta(extra_json_schema=_PROMPT_LISTS)]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    """0 with echo=true only: the prompt is scored and nothing is added to it."""
    logprobs: Alternatives | None = None
    echo: bool = False


# ---------------------------------------------------------------- answers


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """What the prompt's tokens took."""

    cached_tokens: int = 0
    """Those whose KV was there from earlier requests."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a whole request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()


class TopLogprob(msgspec.Struct, frozen=True):
    """One alternative of a token in a chat answer."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    """One token of a chat answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """The tokens of a chat answer, or of one chunk of it."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """The assistant's message."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer of a chat completion."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """The body of a chat completion."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the assistant's message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """One choice's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """One event of a streamed chat completion; `usage` is there when asked for: before the last one null, or so far."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Tokens of a plain completion; the four lists run in parallel. The first token of an echoed prompt has nulls."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One text of a plain completion, or of one chunk of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, frozen=True):
    """The body of a plain completion, and of each of its chunks."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class ModelEntry(msgspec.Struct, frozen=True):
    """One served model."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "pdmesh"


class ModelList(msgspec.Struct, frozen=True):
    """The body of GET /v1/models."""

    data: list[ModelEntry]
    object: Literal["list"] = "list"
