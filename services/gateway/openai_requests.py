"""From the body of an HTTP request to a `Call`: the one place where the OpenAI API's input is checked."""

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec

from common.messages.sampling import SamplingParams
from services.gateway.openai_errors import ApiError, invalid
from services.gateway.openai_types import ChatFields, CompletionFields, GenerationFields, MessageFields

IGNORED: Final = frozenset({"metadata", "store", "service_tier"})
"""Accepted without effect, because unchanged clients send them."""

COMPLETION_MAX_TOKENS: Final = 16
"""What /v1/completions gives when nobody says how much."""

USER_CHARACTERS: Final = 128
"""So much of `user` tells users apart: it is kept, and clients may send anything."""

_ROLES: Final = MappingProxyType({"developer": "system"})
"""Newer clients say developer; the models' templates know system."""


class ChatPrompt(msgspec.Struct, frozen=True):
    """A conversation for the chat template."""

    messages: tuple[dict[str, str], ...]


class TextPrompt(msgspec.Struct, frozen=True):
    """A plain text."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True):
    """A prompt that the client tokenised itself."""

    tokens: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Call(msgspec.Struct, frozen=True):
    """A checked request: everything but what needs the tokeniser or the mesh."""

    prompt: Prompt
    sampling: SamplingParams
    max_tokens: int | None
    """None: as many as fit."""
    default_max_tokens: int | None
    """For a call without max_tokens: at most so many; None: as many as fit."""
    choices: int
    stops: tuple[str, ...]
    min_tokens: int
    ignore_eos: bool
    split: str | int | float | None
    stream: bool
    include_usage: bool
    user: str = ""


class CallRules(msgspec.Struct, frozen=True):
    """What this server allows."""

    model: str
    allow_placement_override: bool
    vocab_size: int


Fields = TypeVar("Fields", bound=GenerationFields)


def parse_chat(body: bytes, rules: CallRules, seed: int) -> Call:
    """The call in the body of POST /v1/chat/completions; `seed` is for a client that gives none. ApiError."""
    fields = _read(body, ChatFields)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise invalid("top_logprobs is allowed with logprobs=true only", "top_logprobs")
    limits = {limit for limit in (fields.max_tokens, fields.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        raise invalid(
            f"max_tokens={fields.max_tokens!r} and max_completion_tokens={fields.max_completion_tokens!r} "
            "disagree; give one of them",
            "max_completion_tokens",
        )
    return _call(
        fields,
        rules,
        seed,
        prompt=ChatPrompt(tuple(_message(m, f"messages[{i}]") for i, m in enumerate(fields.messages))),
        max_tokens=next(iter(limits), None),
        default_max_tokens=None,
        logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
    )


def parse_completion(body: bytes, rules: CallRules, seed: int) -> Call:
    """The call in the body of POST /v1/completions; `seed` is for a client that gives none. ApiError."""
    fields = _read(body, CompletionFields)
    if fields.echo:
        raise invalid("echo=true is not yet supported; put the prompt before the answer yourself", "echo")
    return _call(
        fields,
        rules,
        seed,
        prompt=_plain_prompt(fields.prompt, rules.vocab_size),
        max_tokens=fields.max_tokens,
        default_max_tokens=COMPLETION_MAX_TOKENS,
        logprobs=fields.logprobs,
    )


def _call(
    fields: GenerationFields,
    rules: CallRules,
    seed: int,
    *,
    prompt: Prompt,
    max_tokens: int | None,
    default_max_tokens: int | None,
    logprobs: int | None,
) -> Call:
    _check(fields, rules, max_tokens)
    options = fields.stream_options
    return Call(
        prompt=prompt,
        sampling=_sampling(fields, seed, logprobs),
        max_tokens=max_tokens,
        default_max_tokens=default_max_tokens,
        choices=fields.n,
        stops=(fields.stop,) if isinstance(fields.stop, str) else fields.stop,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        split=None if fields.pdmesh is None else fields.pdmesh.split,
        stream=fields.stream,
        include_usage=options is not None and options.include_usage,
        user=fields.user[:USER_CHARACTERS],
    )


def _check(fields: GenerationFields, rules: CallRules, max_tokens: int | None) -> None:
    """What the types cannot say."""
    if fields.model != rules.model:
        message = f"the model {fields.model!r} does not exist here; this server serves {rules.model!r}"
        raise invalid(message, "model", "model_not_found", status=404)
    if fields.stream_options is not None and not fields.stream:
        raise invalid("stream_options is allowed with stream=true only", "stream_options")
    if max_tokens is not None and fields.min_tokens > max_tokens:
        raise invalid(f"min_tokens={fields.min_tokens!r} is more than max_tokens={max_tokens!r}", "min_tokens")
    if fields.pdmesh is not None and not rules.allow_placement_override:
        raise invalid(
            "pdmesh: this server does not let requests choose their placement; "
            "its operator can set gateway.allow_placement_override: true",
            "pdmesh",
        )
    strangers = [token for token in fields.logit_bias if not 0 <= token < rules.vocab_size]
    if strangers:
        raise invalid(
            f"logit_bias: {strangers[0]!r} is not a token id of this model (0 to {rules.vocab_size - 1})", "logit_bias"
        )


def _sampling(fields: GenerationFields, seed: int, logprobs: int | None) -> SamplingParams:
    return SamplingParams(
        temperature=fields.temperature,
        top_k=max(fields.top_k, 0),
        top_p=fields.top_p,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        frequency_penalty=fields.frequency_penalty,
        presence_penalty=fields.presence_penalty,
        logit_bias=fields.logit_bias,
        # Seeds are 63 bits on the way to the engine; a negative one keeps its low bits.
        seed=(seed if fields.seed is None else fields.seed) & (2**63 - 1),
        logprobs=logprobs,
    )


def _message(fields: MessageFields, where: str) -> dict[str, str]:
    message = {"role": _ROLES.get(fields.role, fields.role), "content": _text(fields.content, f"{where}.content")}
    return message if fields.name is None else {**message, "name": fields.name}


def _text(content: str | list[dict[str, Any]], where: str) -> str:
    """Text parts are joined by line ends, as other servers of open models do."""
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(content))


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


def _plain_prompt(prompt: str | list[Any], vocab_size: int) -> Prompt:
    if isinstance(prompt, str):
        return TextPrompt(prompt)
    if prompt and all(isinstance(item, str | list) for item in prompt):
        raise invalid(
            f"a list of prompts (here {len(prompt)}) is not yet supported; send one request for each", "prompt"
        )
    for i, token in enumerate(prompt):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise invalid(f"prompt[{i}]={token!r} is not a token id of this model (0 to {vocab_size - 1})", "prompt")
    return TokenPrompt(tuple(prompt))


# ---------------------------------------------------------------- JSON


def _read(body: bytes, kind: type[Fields]) -> Fields:
    try:
        values = _without_nulls(msgspec.json.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise invalid(f"the body must be a JSON object, got {type(values).__name__}", code="invalid_json")
    values = {name: value for name, value in values.items() if name not in IGNORED}
    for name in values.keys() - set(kind.__struct_fields__):
        raise _unknown(name, kind)
    try:
        return msgspec.convert(values, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _misfit(error, values) from error


def _without_nulls(value: Any) -> Any:
    """A null means the parameter was not given, at any depth."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _unknown(name: str, kind: type[GenerationFields]) -> ApiError:
    near = difflib.get_close_matches(name, kind.__struct_fields__, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return invalid(f"the parameter {name!r} is not supported{hint}", name, "unsupported_parameter")


def _misfit(error: msgspec.ValidationError, values: Mapping[str, Any]) -> ApiError:
    """Name the parameter: msgspec ends its message with the path of the value, or names the field itself."""
    reason, _, path = str(error).partition(" - at ")
    where = path.rpartition("$")[2].strip("`.").replace("[...]", "")
    field = re.search(r"(?:required|unknown) field `([^`]+)`", reason)
    param = ".".join(part for part in (where, field and field[1]) if part)
    got = f"{where}={values[where]!r}: " if where in values else f"{where}: " if where else ""
    return invalid(f"{got}{reason[0].lower()}{reason[1:]}", param or None)
