"""From a checked call and its prompt's tokens to what the mesh is asked. Pure."""

import msgspec

from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.gateway.openai.errors import ApiError, invalid
from services.gateway.openai.requests import Call, TextPrompt
from services.gateway.stream import GenerationRequest
from services.text.choice import ChoiceRules
from services.text.echo import EchoRules


class Context(msgspec.Struct, frozen=True):
    """Most tokens of a prompt and its output together."""

    most: int
    """Of a request that says how many it wants."""
    unasked: int
    """Of one that does not. At most `most`, and more than the prompt where that is."""


def plan_request(
    call: Call, request: RequestId, index: int, prompt: tuple[int, ...], context: Context, eos_ids: frozenset[int]
) -> GenerationRequest:
    """What the mesh is asked for the prompt of this index, whose tokens are `prompt`.

    The first prompt's request has the call's id. Raises ApiError.
    """
    return GenerationRequest(
        request=RequestId(f"{request}-{index}") if index else request,
        call=request if index else None,
        prompt=prompt,
        sampling=_sampling(call, index),
        max_tokens=_max_tokens(call, len(prompt), context),
        choices=call.choices,
        stop_tokens=() if call.ignore_eos and not call.sampling.grammar else tuple(sorted(eos_ids)),
        min_tokens=_min_tokens(call, context.most),
        split=call.split,
        user=call.user,
    )


def context_exceeded(context: int, needed: str, param: str) -> ApiError:
    """The prompt, or the prompt and its answer, have no room; `needed` follows the words "the prompt has".

    The first words are OpenAI's: clients such as litellm know the error by them, and not by its code.
    """
    return invalid(
        f"this model's maximum context length is {context} tokens; the prompt has {needed}; "
        "shorten the prompt or ask for fewer tokens",
        param,
        "context_length_exceeded",
    )


def check_prompt(tokens: int, context: int, most: int | None) -> None:
    """Raise ApiError for a prompt of so many `tokens` where the operator allows `most`.

    The code is that of the context: clients know it, and shorten what they send.
    """
    if most is not None and most < tokens <= context:
        raise invalid(
            f"the prompt has {tokens} tokens, and this server's maximum input length is {most} tokens "
            "(gateway.max_prompt); shorten it",
            "prompt",
            "context_length_exceeded",
        )


def rules_of(call: Call, request: GenerationRequest) -> ChoiceRules:
    """How the text of each choice ends."""
    return ChoiceRules(call.stops, frozenset(request.stop_tokens), call.min_tokens)


def echo_of(call: Call, index: int, tokens: tuple[int, ...]) -> EchoRules | None:
    """What is said of the prompt of this index before its answers; None: nothing."""
    if not call.echo:
        return None
    prompt = call.prompts[index]
    text = prompt.text if isinstance(prompt, TextPrompt) else None
    is_scored = call.sampling.prompt_logprobs is not None
    return EchoRules(tokens, text, has_logprobs=is_scored, is_all=call.max_tokens == 0)


def _sampling(call: Call, index: int) -> SamplingParams:
    """Equal prompts of a batch get answers of their own, unless the client has said the seed."""
    if call.is_seeded or index == 0:
        return call.sampling
    return msgspec.structs.replace(call.sampling, seed=(call.sampling.seed + index) & (2**63 - 1))


def _min_tokens(call: Call, context: int) -> int:
    """An answer that is held to a grammar ends where that ends; ignore_eos only keeps it from ending before."""
    return context if call.ignore_eos and call.sampling.grammar else call.min_tokens


def _max_tokens(call: Call, prompt: int, context: Context) -> int:
    if prompt == 0:
        raise invalid("the prompt has no tokens; send at least one", "prompt")
    room = context.most - prompt
    wanted = max(call.max_tokens or 1, call.min_tokens)
    if wanted > room:
        needed = f"{prompt} and the answer may need {wanted}, together {prompt + wanted}"
        raise context_exceeded(context.most, needed, "max_tokens" if room > 0 else "prompt")
    if call.max_tokens is not None:
        # The mesh samples at least one, since a request without an answer has no end there; nobody is shown it.
        return max(call.max_tokens, 1)
    if call.default_max_tokens is None:
        return min(max(context.unasked - prompt, wanted), room)
    return min(max(call.default_max_tokens, call.min_tokens), room)
