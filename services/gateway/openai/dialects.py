"""The two shapes of an OpenAI completion. Each turns an answer into bodies or stream events, as JSON. Pure."""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from common.messages.control import FinishReason
from services.gateway.openai.choices import ChoiceAnswer, ChoiceDelta
from services.gateway.openai.tool_answers import CallingChoice
from services.gateway.openai.types import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatTokenLogprob,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    TopLogprob,
    Usage,
)
from services.text.choice import TokenEntry

CHAT_ID: Final = "chatcmpl-"
"""What the id of a chat completion begins with."""

LEAST_LOGPROB: Final = -9999.0
"""What OpenAI's API says for a probability of zero, which JSON could not."""


class AnswerShape(msgspec.Struct, frozen=True):
    """What every part of one answer repeats, and what was asked of its shape."""

    id: str
    created: int
    model: str
    choices: int
    with_logprobs: bool
    with_usage: bool
    """Whether a stream ends with a chunk of usage."""
    may_call: bool = False
    """Calls of tools are to be read in its text."""


class Dialect(Protocol):
    """One kind of completion. Every method returns JSON texts, one for each event."""

    def whole(self, answers: Sequence[ChoiceAnswer], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def opening(self) -> list[bytes]:
        """The events before any text."""
        ...

    def events(self, item: ChoiceDelta) -> list[bytes]:
        """The events of one delta: text where there is some, then the finish where there is one."""
        ...

    def closing(self, usage: Usage) -> list[bytes]:
        """The events after the last choice has finished."""
        ...


class ChatDialect:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, shape: AnswerShape) -> None:
        self._shape = shape
        name = shape.id.removeprefix(CHAT_ID)
        callers = range(shape.choices if shape.may_call else 0)
        self._calling = {choice: CallingChoice(f"call_{name}-{choice}") for choice in callers}

    def whole(self, answers: Sequence[ChoiceAnswer], usage: Usage) -> bytes:
        """See Dialect."""
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        shape = self._shape
        return msgspec.json.encode(ChatCompletion(shape.id, shape.created, shape.model, choices, usage))

    def opening(self) -> list[bytes]:
        """See Dialect."""
        role = ChatDelta(role="assistant", content="")
        return [self._chunk([ChatChunkChoice(i, role)]) for i in range(self._shape.choices)]

    def events(self, item: ChoiceDelta) -> list[bytes]:
        """See Dialect."""
        delta = item.delta
        calling = self._calling.get(item.choice)
        if calling is not None:
            parts = calling.push(delta)
        else:
            parts = [ChatDelta(content=delta.text)] if delta.text or delta.entries else []
        if delta.entries and not parts:
            parts = [ChatDelta()]
        logprobs = self._logprobs(delta.entries)
        chunks = [ChatChunkChoice(item.choice, part, None if i else logprobs) for i, part in enumerate(parts)]
        if delta.finish is not None:
            word = delta.finish.value if calling is None else calling.finish_word(delta.finish)
            chunks.append(ChatChunkChoice(item.choice, ChatDelta(), None, word))
        return [self._chunk([chunk], item.usage) for chunk in chunks]

    def closing(self, usage: Usage) -> list[bytes]:
        """See Dialect."""
        return [self._chunk([], usage)] if self._shape.with_usage else []

    def _choice(self, index: int, answer: ChoiceAnswer) -> ChatChoice:
        message, word = ChatMessage(answer.text), answer.finish.value
        if (calling := self._calling.get(index)) is not None:
            message, word = calling.whole(answer.text, answer.finish)
        return ChatChoice(index, message, word, self._logprobs(answer.entries))

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> bytes:
        shape = self._shape
        told = usage if shape.with_usage else UNSET
        return msgspec.json.encode(ChatChunk(shape.id, shape.created, shape.model, choices, told))

    def _logprobs(self, entries: Sequence[TokenEntry]) -> ChatLogprobs | None:
        if not self._shape.with_logprobs:
            return None
        return ChatLogprobs([_chat_token(entry) for entry in entries])


class CompletionDialect:
    """text_completion, whole and in chunks."""

    def __init__(self, shape: AnswerShape) -> None:
        self._shape = shape

    def whole(self, answers: Sequence[ChoiceAnswer], usage: Usage) -> bytes:
        """See Dialect."""
        choices = [self._choice(i, answer.text, answer.entries, answer.finish) for i, answer in enumerate(answers)]
        return self._body(choices, usage)

    def opening(self) -> list[bytes]:
        """See Dialect."""
        return []

    def events(self, item: ChoiceDelta) -> list[bytes]:
        """See Dialect."""
        choices = []
        if item.delta.text or item.delta.entries:
            choices.append(self._choice(item.choice, item.delta.text, item.delta.entries, None))
        if item.delta.finish is not None:
            choices.append(CompletionChoice(item.choice, "", None, item.delta.finish.value))
        usage = item.usage if self._shape.with_usage else UNSET
        return [self._body([choice], usage) for choice in choices]

    def closing(self, usage: Usage) -> list[bytes]:
        """See Dialect."""
        return [self._body([], usage)] if self._shape.with_usage else []

    def _body(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> bytes:
        shape = self._shape
        return msgspec.json.encode(Completion(shape.id, shape.created, shape.model, choices, usage))

    def _choice(
        self, index: int, text: str, entries: Sequence[TokenEntry], finish: FinishReason | None
    ) -> CompletionChoice:
        logprobs = _completion_logprobs(entries) if self._shape.with_logprobs else None
        return CompletionChoice(index, text, logprobs, None if finish is None else finish.value)


def token_text(piece: bytes) -> str:
    """How a token is shown: its text, or `bytes:\\x..` where it is only a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _known(logprob: float | None) -> float | None:
    return None if logprob is None else _finite(logprob)


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def _chat_token(entry: TokenEntry) -> ChatTokenLogprob:
    assert entry.logprob is not None  # a chat says no prompt again
    top = [TopLogprob(token_text(piece), _finite(logprob), list(piece)) for piece, logprob in entry.top]
    return ChatTokenLogprob(token_text(entry.piece), _finite(entry.logprob), list(entry.piece), top)


def _completion_logprobs(entries: Sequence[TokenEntry]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[token_text(entry.piece) for entry in entries],
        token_logprobs=[_known(entry.logprob) for entry in entries],
        top_logprobs=[_alternatives(entry) for entry in entries],
        text_offset=[entry.offset for entry in entries],
    )


def _alternatives(entry: TokenEntry) -> dict[str, float] | None:
    """The likeliest tokens and always the chosen one; of two that look alike, the likelier. None: nothing is known."""
    if entry.logprob is None:
        return None
    shown: dict[str, float] = {}
    for piece, logprob in (*entry.top, (entry.piece, entry.logprob)):
        shown.setdefault(token_text(piece), _finite(logprob))
    return shown
