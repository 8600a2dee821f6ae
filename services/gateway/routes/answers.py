"""The answer to one request as it grows: events of the mesh in, text of the choices out."""

from collections.abc import Sequence
from typing import assert_never

from common.errors import Failure, PdmeshError
from common.messages.control import EmittedTokens
from services.gateway.lane.text_lane import LaneChoice, TextLane
from services.gateway.openai.choices import ChoiceAnswer, ChoiceDelta, joined
from services.gateway.openai.types import PromptTokensDetails, Usage
from services.gateway.records.observer import RequestWatch
from services.gateway.routes.submission import Submission
from services.gateway.stream import Failed, Placed, Placement, PromptCached, StreamEvent
from services.text.choice import TextDelta


class RequestFailed(PdmeshError):
    """The mesh gave up the request."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class AnswerReader:
    """Reads what a call submitted to its end; the end is known here first when stop strings end the choices.

    A prompt is closed here as soon as the last of its choices has ended; in every other case by the owner.
    """

    def __init__(
        self,
        stream: Submission,
        lane: TextLane,
        choices: Sequence[LaneChoice],
        prompt_tokens: int,
        watch: RequestWatch,
        *,
        tells_usage: bool = False,
    ) -> None:
        """`tells_usage`: every delta has the usage up to it."""
        self._stream = stream
        self._lane = lane
        self._choices = choices
        self._watch = watch
        self._tells_usage = tells_usage
        self._open = set(range(len(choices)))
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._failure: Failure | None = None
        self.placement: Placement | None = None

    def usage(self) -> Usage:
        """Tokens so far."""
        total = self._prompt_tokens + self._completion_tokens
        cached = PromptTokensDetails(self._cached_tokens)
        return Usage(self._prompt_tokens, self._completion_tokens, total, cached)

    async def next_many(self) -> list[ChoiceDelta]:
        """What comes next, and whatever else is there; empty when every choice has ended; raises RequestFailed."""
        while self._open:
            if self._failure is not None:
                raise RequestFailed(self._failure)
            events = self._sorted(await self._stream.next_many())
            if events and (deltas := await self._read(events)):
                return deltas
        return []

    async def rest(self) -> list[ChoiceAnswer]:
        """All choices, whole; raises RequestFailed."""
        deltas: list[list[TextDelta]] = [[] for _ in self._choices]
        while items := await self.next_many():
            for item in items:
                deltas[item.choice].append(item.delta)
        return [joined(parts) for parts in deltas]

    def _sorted(self, events: Sequence[StreamEvent]) -> list[EmittedTokens]:
        """The tokens among `events`; what else there is, is noted."""
        found: list[EmittedTokens] = []
        for event in events:
            match event:
                case EmittedTokens(choice=choice):
                    # Tokens may still come for a choice that a stop string has ended.
                    if choice in self._open:
                        found.append(event)
                case Placed(placement):
                    self.placement = placement
                case PromptCached(tokens):
                    self._cached_tokens = tokens
                case Failed(failure):
                    self._failure = failure
                case _:
                    assert_never(event)
        return found

    async def _read(self, events: Sequence[EmittedTokens]) -> list[ChoiceDelta]:
        deltas = await self._lane.push_many([(self._choices[event.choice], event) for event in events])
        read = [
            ChoiceDelta(event.choice, delta) for event, delta in zip(events, deltas, strict=True) if delta is not None
        ]
        for number, item in enumerate(read):
            self._completion_tokens += item.delta.tokens
            if self._tells_usage:
                read[number] = ChoiceDelta(item.choice, item.delta, self.usage())
            self._watch.tokens(item.choice, item.delta.tokens)
            if item.delta.finish is not None:
                self._open.discard(item.choice)
                self._stream.choice_ended(item.choice)
        return read
