"""The answer to one request as it grows: events of the mesh in, text of the choices out."""

from collections.abc import Sequence
from typing import assert_never

import msgspec

from common.errors import Failure, PdmeshError
from common.messages.control import EmittedTokens, FinishReason
from services.gateway.observer import RequestWatch
from services.gateway.openai_types import Usage
from services.gateway.stream import Failed, Placed, Placement, RequestStream
from services.gateway.text_lane import TextLane
from services.text.choice import ChoiceText, TextDelta, TokenEntry


class RequestFailed(PdmeshError):
    """The mesh gave up the request."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ChoiceDelta(msgspec.Struct, frozen=True):
    """What came for one choice. The first of a request may be empty of text."""

    choice: int
    delta: TextDelta


class ChoiceAnswer(msgspec.Struct, frozen=True):
    """A whole choice."""

    text: str
    finish: FinishReason
    entries: tuple[TokenEntry, ...]


class AnswerReader:
    """Reads one request's stream to its end; the end is known here first when stop strings end the choices.

    The stream is closed here as soon as the last choice has ended; in every other case by its owner.
    """

    def __init__(
        self,
        stream: RequestStream,
        lane: TextLane,
        choices: Sequence[ChoiceText],
        prompt_tokens: int,
        watch: RequestWatch,
    ) -> None:
        self._stream = stream
        self._lane = lane
        self._choices = choices
        self._watch = watch
        self._open = set(range(len(choices)))
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self.placement: Placement | None = None

    def usage(self) -> Usage:
        """Tokens so far."""
        total = self._prompt_tokens + self._completion_tokens
        return Usage(self._prompt_tokens, self._completion_tokens, total)

    async def next(self) -> ChoiceDelta | None:
        """What comes next; None when every choice has ended; raises RequestFailed."""
        while self._open:
            event = await self._stream.next()
            match event:
                case Placed(placement):
                    self.placement = placement
                case Failed(failure):
                    raise RequestFailed(failure)
                case EmittedTokens(choice=choice):
                    # Tokens may still come for a choice that a stop string has ended.
                    if choice in self._open:
                        return ChoiceDelta(choice, await self._read(event))
                case _:
                    assert_never(event)
        return None

    async def rest(self) -> list[ChoiceAnswer]:
        """All choices, whole; raises RequestFailed."""
        deltas: list[list[TextDelta]] = [[] for _ in self._choices]
        while (item := await self.next()) is not None:
            deltas[item.choice].append(item.delta)
        return [_joined(parts) for parts in deltas]

    async def _read(self, event: EmittedTokens) -> TextDelta:
        delta = await self._lane.push(self._choices[event.choice], event)
        self._completion_tokens += delta.tokens
        self._watch.tokens(event.choice, delta.tokens)
        if delta.finish is not None:
            self._open.discard(event.choice)
            if not self._open:
                self._stream.close()
        return delta


def _joined(parts: Sequence[TextDelta]) -> ChoiceAnswer:
    finish = parts[-1].finish
    if finish is None:
        raise ValueError("a choice is joined when it has ended")
    return ChoiceAnswer(
        text="".join(part.text for part in parts),
        finish=finish,
        entries=tuple(entry for part in parts for entry in part.entries),
    )
