"""From the body of an HTTP request to a `Call`: the one place where the OpenAI API's input is checked."""

from typing import Any, Final

import msgspec

from common.messages.sampling import SamplingParams
from services.gateway.openai.body import read_body
from services.gateway.openai.errors import invalid
from services.gateway.openai.messages import template_message
from services.gateway.openai.structured_output import ANY_TEXT, Structure, structure_of
from services.gateway.openai.types import ChatFields, CompletionFields, GenerationFields
from services.text.tools import Tool

COMPLETION_MAX_TOKENS: Final = 16
"""What /v1/completions gives when nobody says how much."""

MOST_PROMPTS: Final = 128
"""Of one request. Each is a request to the mesh, and takes its place in the queue."""

MOST_ANSWERS: Final = 256
"""Of one request: its prompts times n."""

USER_CHARACTERS: Final = 128
"""So much of `user` tells users apart: it is kept, and clients may send anything."""


class ChatPrompt(msgspec.Struct, frozen=True):
    """A conversation for the chat template, and the tools that the model is to know of."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[Tool, ...] = ()
    must_call: bool = False


class TextPrompt(msgspec.Struct, frozen=True):
    """A plain text."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True):
    """A prompt that the client tokenised itself."""

    tokens: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class Call(msgspec.Struct, frozen=True):
    """A checked request: everything but what needs the tokeniser or the mesh."""

    prompts: tuple[Prompt, ...]
    """Each is answered `choices` times. More than one is a batch."""
    sampling: SamplingParams
    max_tokens: int | None
    """None: as many as fit; 0 with `echo` only."""
    default_max_tokens: int | None
    """For a call without max_tokens: at most so many; None: as many as fit."""
    choices: int
    stops: tuple[str, ...]
    min_tokens: int
    ignore_eos: bool
    split: str | int | float | None
    stream: bool
    include_usage: bool
    usage_so_far: bool = False
    """Every chunk of text tells it; with `include_usage` only."""
    user: str = ""
    echo: bool = False
    """Every answer begins with its prompt."""
    structure: Structure = ANY_TEXT
    """The form of the answer."""
    is_seeded: bool = False
    """The client has said the seed: then each prompt of a batch is answered as it would be alone."""


class CallRules(msgspec.Struct, frozen=True):
    """What this server allows."""

    model: str
    allow_placement_override: bool
    vocab_size: int


def parse_chat(body: bytes, rules: CallRules, seed: int) -> Call:
    """The call in the body of POST /v1/chat/completions; `seed` is for a client that gives none. ApiError."""
    fields = read_body(body, ChatFields)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise invalid("top_logprobs is allowed with logprobs=true only", "top_logprobs")
    limits = {limit for limit in (fields.max_tokens, fields.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        raise invalid(
            f"max_tokens={fields.max_tokens!r} and max_completion_tokens={fields.max_completion_tokens!r} "
            "disagree; give one of them",
            "max_completion_tokens",
        )
    messages = tuple(template_message(message, f"messages[{i}]") for i, message in enumerate(fields.messages))
    structure = structure_of(fields)
    return _call(
        fields,
        rules,
        seed,
        prompts=(ChatPrompt(messages, structure.tools, structure.must_call),),
        max_tokens=next(iter(limits), None),
        default_max_tokens=None,
        logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        structure=structure,
    )


def parse_completion(body: bytes, rules: CallRules, seed: int) -> Call:
    """The call in the body of POST /v1/completions; `seed` is for a client that gives none. ApiError."""
    fields = read_body(body, CompletionFields)
    prompts = _plain_prompts(fields.prompt, rules.vocab_size)
    _check_completion(fields, len(prompts))
    return _call(
        fields,
        rules,
        seed,
        prompts=prompts,
        max_tokens=fields.max_tokens,
        default_max_tokens=COMPLETION_MAX_TOKENS,
        logprobs=fields.logprobs,
        echo=fields.echo,
    )


def _call(
    fields: GenerationFields,
    rules: CallRules,
    seed: int,
    *,
    prompts: tuple[Prompt, ...],
    max_tokens: int | None,
    default_max_tokens: int | None,
    logprobs: int | None,
    echo: bool = False,
    structure: Structure = ANY_TEXT,
) -> Call:
    _check(fields, rules, max_tokens)
    options = fields.stream_options
    return Call(
        prompts=prompts,
        sampling=_sampling(fields, seed, logprobs, logprobs if echo else None, structure.grammar),
        max_tokens=max_tokens,
        default_max_tokens=default_max_tokens,
        choices=fields.n,
        stops=(fields.stop,) if isinstance(fields.stop, str) else fields.stop,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        split=None if fields.pdmesh is None else fields.pdmesh.split,
        stream=fields.stream,
        include_usage=options is not None and options.include_usage,
        usage_so_far=options is not None and options.include_usage and options.continuous_usage_stats,
        user=fields.user[:USER_CHARACTERS],
        echo=echo,
        is_seeded=fields.seed is not None,
        structure=structure,
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


def _check_completion(fields: CompletionFields, prompts: int) -> None:
    """What the types cannot say of a plain completion alone."""
    if fields.max_tokens == 0 and not fields.echo:
        raise invalid("max_tokens=0 is allowed with echo=true only; there would be nothing to answer", "max_tokens")
    if prompts * fields.n > MOST_ANSWERS:
        raise invalid(
            f"{prompts} prompts with n={fields.n!r} are {prompts * fields.n} answers; one request has at most "
            f"{MOST_ANSWERS}: lower n, or send several requests",
            "n",
        )
    is_scored = fields.echo and fields.logprobs is not None
    if is_scored and fields.pdmesh is not None and fields.pdmesh.split not in (None, 0):
        raise invalid(
            f"pdmesh.split={fields.pdmesh.split!r} with echo and logprobs: the logprobs of a prompt are made where the "
            "answer is, so that split must be 0; leave it out",
            "pdmesh.split",
        )


def _sampling(
    fields: GenerationFields, seed: int, logprobs: int | None, prompt_logprobs: int | None, grammar: str
) -> SamplingParams:
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
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def _plain_prompts(prompt: str | list[Any], vocab_size: int) -> tuple[Prompt, ...]:
    """A text, token ids, or a list of either: OpenAI's four forms."""
    if isinstance(prompt, str):
        return (TextPrompt(prompt),)
    if not (prompt and isinstance(prompt[0], str | list)):
        return (_token_prompt(prompt, vocab_size, "prompt"),)
    if len(prompt) > MOST_PROMPTS:
        raise invalid(f"{len(prompt)} prompts; one request has at most {MOST_PROMPTS}: send several requests", "prompt")
    kind = type(prompt[0])
    for i, item in enumerate(prompt):
        if not isinstance(item, kind):
            raise invalid(
                f"prompt[{i}] is a {type(item).__name__}, and prompt[0] a {kind.__name__}; a list of prompts has texts "
                "only, or lists of token ids only",
                f"prompt[{i}]",
            )
    return tuple(
        TextPrompt(item) if isinstance(item, str) else _token_prompt(item, vocab_size, f"prompt[{i}]")
        for i, item in enumerate(prompt)
    )


def _token_prompt(tokens: list[Any], vocab_size: int, where: str) -> TokenPrompt:
    for i, token in enumerate(tokens):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise invalid(f"{where}[{i}]={token!r} is not a token id of this model (0 to {vocab_size - 1})", where)
    return TokenPrompt(tuple(tokens))
