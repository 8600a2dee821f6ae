"""The requests of one call in the mesh, read as one stream."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import assert_never

import msgspec

from common.messages.control import EmittedTokens
from common.tasks import TaskScope
from services.gateway.stream import (
    MOST_UNREAD,
    Failed,
    GenerationRequest,
    Mesh,
    Placed,
    PromptCached,
    RequestStream,
    StreamEvent,
)


class Submission:
    """One request for each prompt; choice c of prompt i is choice i · n + c. Owned by one handler, which must close it.

    A failure of any is a failure of all, and names its prompt where there are several; whoever reads it closes the
    submission, and with it the others. The placement told is that of the first prompt.
    """

    def __init__(self, mesh: Mesh, requests: Sequence[GenerationRequest]) -> None:
        """Submit all, in order; they are of one call and ask for as many choices each."""
        self._choices = requests[0].choices
        self._open = [set(range(self._choices)) for _ in requests]
        self._cached = [0] * len(requests)
        self._events: list[StreamEvent] = []
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._streams = [mesh.submit(request) for request in requests]
        self._pumps: list[asyncio.Task[None]] = []
        if len(requests) > 1:
            tasks = TaskScope("submission")
            self._pumps = [tasks.start(self._pump(i), requests[i].request) for i in range(len(requests))]

    async def next_many(self) -> list[StreamEvent]:
        """See RequestStream.next_many."""
        if not self._pumps:
            return await self._streams[0].next_many()
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        events, self._events = self._events, []
        self._taken.set()
        return events

    def choice_ended(self, choice: int) -> None:
        """Nobody waits for more of this choice. A prompt whose choices have all ended is done with."""
        index, own = divmod(choice, self._choices)
        self._open[index].discard(own)
        if not self._open[index]:
            self._close(index, is_answered=True)

    def close(self) -> None:
        """Forget every request; what is unfinished the mesh drops within a step. Idempotent."""
        for index in range(len(self._streams)):
            self._close(index)

    def _close(self, index: int, *, is_answered: bool = False) -> None:
        self._streams[index].close(is_answered=is_answered)
        if self._pumps:
            self._pumps[index].cancel()

    async def _pump(self, index: int) -> None:
        stream: RequestStream = self._streams[index]
        while True:
            events = await stream.next_many()
            self._events += [renamed for event in events for renamed in self._renamed(index, event)]
            self._arrived.set()
            while len(self._events) > MOST_UNREAD:
                self._taken.clear()
                await self._taken.wait()

    def _renamed(self, index: int, event: StreamEvent) -> Iterator[StreamEvent]:
        match event:
            case EmittedTokens(choice=choice):
                yield msgspec.structs.replace(event, choice=index * self._choices + choice)
            case Placed():
                if index == 0:
                    yield event
            case PromptCached(tokens):
                self._cached[index] = tokens
                yield PromptCached(sum(self._cached))
            case Failed(failure):
                named = msgspec.structs.replace(failure, message=f"prompt[{index}]: {failure.message}")
                yield Failed(named)
            case _:
                assert_never(event)
