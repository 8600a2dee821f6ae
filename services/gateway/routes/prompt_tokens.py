"""From the prompts of a call to token ids, on the text lane."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import assert_never

import msgspec

from services.gateway.lane.text_lane import TextLane, TextTooLong
from services.gateway.openai.errors import ApiError
from services.gateway.openai.planning import context_exceeded
from services.gateway.openai.requests import ChatPrompt, Prompt, TextPrompt, TokenPrompt


async def encode_prompts(text: TextLane, prompts: Sequence[Prompt], context: int) -> list[tuple[int, ...]]:
    """The tokens of each, in order; TemplateRefused, or ApiError for one that has more than `context`."""
    encoded: list[tuple[int, ...]] = []
    for index, prompt in enumerate(prompts):
        with naming(index, len(prompts)):
            encoded.append(await _encode(text, prompt, context))
    return encoded


@contextmanager
def naming(index: int, count: int) -> Iterator[None]:
    """What is refused within names prompt[index] where there are several."""
    try:
        yield
    except ApiError as error:
        if count == 1:
            raise
        where = f"prompt[{index}]"
        param = where if error.body.param == "prompt" else error.body.param
        body = msgspec.structs.replace(error.body, message=f"{where}: {error.body.message}", param=param)
        raise ApiError(error.status, body, is_retryable=error.is_retryable) from error


async def _encode(text: TextLane, prompt: Prompt, context: int) -> tuple[int, ...]:
    try:
        match prompt:
            case ChatPrompt(messages, tools, must_call):
                return await text.encode_chat(messages, context, tools, must_call=must_call)
            case TextPrompt(plain):
                return await text.encode_text(plain, context)
            case TokenPrompt(tokens):
                return tokens
            case _:
                assert_never(prompt)
    except TextTooLong as error:
        raise context_exceeded(context, f"at least {error.least_tokens}", "prompt") from error
