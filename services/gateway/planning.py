"""From a checked call and its prompt's tokens to what the mesh is asked. Pure."""

from common.ids import RequestId
from services.gateway.openai_errors import ApiError, invalid
from services.gateway.openai_requests import Call
from services.gateway.stream import GenerationRequest
from services.text.choice import ChoiceRules


def plan_request(
    call: Call, request: RequestId, prompt: tuple[int, ...], context: int, eos_ids: frozenset[int]
) -> GenerationRequest:
    """The request for the mesh. `context` is the most tokens of prompt and output together. ApiError."""
    return GenerationRequest(
        request=request,
        prompt=prompt,
        sampling=call.sampling,
        max_tokens=_max_tokens(call, len(prompt), context),
        choices=call.choices,
        stop_tokens=() if call.ignore_eos else tuple(sorted(eos_ids)),
        min_tokens=call.min_tokens,
        split=call.split,
        user=call.user,
    )


def context_exceeded(context: int, needed: str, param: str) -> ApiError:
    """The prompt, or the prompt and its answer, have no room; `needed` follows the words "the prompt has"."""
    return invalid(
        f"this model's context is {context} tokens; the prompt has {needed}; "
        "shorten the prompt or ask for fewer tokens",
        param,
        "context_length_exceeded",
    )


def rules_of(call: Call, request: GenerationRequest) -> ChoiceRules:
    """How the text of each choice ends."""
    return ChoiceRules(call.stops, frozenset(request.stop_tokens), call.min_tokens)


def _max_tokens(call: Call, prompt: int, context: int) -> int:
    if prompt == 0:
        raise invalid("the prompt has no tokens; send at least one", "prompt")
    room = context - prompt
    wanted = max(call.max_tokens or 1, call.min_tokens)
    if wanted > room:
        needed = f"{prompt} and the answer may need {wanted}, together {prompt + wanted}"
        raise context_exceeded(context, needed, "max_tokens" if room > 0 else "prompt")
    if call.max_tokens is not None:
        return call.max_tokens
    default = room if call.default_max_tokens is None else max(call.default_max_tokens, call.min_tokens)
    return min(default, room)
