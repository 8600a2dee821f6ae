"""An in-memory `Mesh` that plays back scripts; its faults are parameters."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from common.ids import InstanceId
from common.messages.control import EmittedTokens, FinishReason
from common.messages.sampling import TokenLogprobs
from services.gateway.stream import GenerationRequest, Placed, Placement, StreamEvent

Script = Callable[[GenerationRequest], Iterable[StreamEvent]]
"""What the mesh says to a request. After the last event the stream is silent for ever."""


class ScriptedMesh:
    """Answers every request by `script`, and keeps what it was asked.

    `context` and `reason` are what context_length() and not_ready() say; `together` is how many events come at a time.
    """

    def __init__(
        self, script: Script, *, context: int | None = None, reason: str | None = None, together: int = 1
    ) -> None:
        self._script = script
        self._together = together
        self._context = context
        self._reason = reason
        self.requests: list[GenerationRequest] = []
        self.streams: list[ScriptedStream] = []
        self._submitted = asyncio.Event()

    def submit(self, request: GenerationRequest) -> "ScriptedStream":
        """See Mesh."""
        stream = ScriptedStream(self._script(request), self._together)
        self.requests.append(request)
        self.streams.append(stream)
        self._submitted.set()
        return stream

    async def first_stream(self) -> "ScriptedStream":
        """The stream of the first request, once there is one."""
        await self._submitted.wait()
        return self.streams[0]

    def context_length(self) -> int | None:
        """See Mesh."""
        return self._context

    def open_context(self, prompt_tokens: int) -> int | None:  # noqa: ARG002
        """See Mesh."""
        return self._context

    def not_ready(self) -> str | None:
        """See Mesh."""
        return self._reason


class ScriptedStream:
    """One request in flight."""

    def __init__(self, events: Iterable[StreamEvent], together: int) -> None:
        self._events = deque(events)
        self._together = together
        self._closed = asyncio.Event()
        self._read = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether the owner has closed the stream."""
        return self._closed.is_set()

    @property
    def unread(self) -> int:
        """Events that nobody has taken."""
        return len(self._events)

    async def next_many(self) -> list[StreamEvent]:
        """See RequestStream."""
        await asyncio.sleep(0)
        if not self._events:
            self._read.set()
            await asyncio.get_running_loop().create_future()
        return [self._events.popleft() for _ in range(min(self._together, len(self._events)))]

    def close(self, *, is_answered: bool = False) -> None:  # noqa: ARG002
        """See RequestStream."""
        self._closed.set()

    async def wait_read(self) -> None:
        """Return once the owner has taken every event and asks for more."""
        await self._read.wait()

    async def wait_closed(self) -> None:
        """Return once the owner has closed the stream."""
        await self._closed.wait()


def placed(split: int = 3, kv_bytes: int = 4096) -> Placed:
    """A placement on p0 and d0."""
    return Placed(Placement(InstanceId("p0"), InstanceId("d0"), split, kv_bytes))


def emitted(
    request: GenerationRequest,
    tokens: Sequence[int],
    *,
    choice: int = 0,
    first: int = 0,
    finish: FinishReason | None = None,
    logprobs: Sequence[TokenLogprobs] = (),
) -> EmittedTokens:
    """Tokens of one choice."""
    return EmittedTokens(request.request, choice, first, tuple(tokens), finish, tuple(logprobs))


def token_by_token(
    answers: Sequence[Sequence[int]],
    finish: FinishReason = FinishReason.STOP,
    *,
    batch: int = 1,
    logprobs: Callable[[int], TokenLogprobs] | None = None,
) -> Script:
    """A script: the placement, then `answers[c]` for choice c, `batch` tokens an event, the choices in turn."""

    def script(request: GenerationRequest) -> list[StreamEvent]:
        events: list[StreamEvent] = [placed()]
        for first in range(0, max(map(len, answers)), batch):
            for choice, answer in enumerate(answers):
                tokens = answer[first : first + batch]
                if tokens:
                    ends = finish if first + batch >= len(answer) else None
                    scores = [logprobs(token) for token in tokens] if logprobs else ()
                    event = emitted(request, tokens, choice=choice, first=first, finish=ends, logprobs=scores)
                    events.append(event)
        return events

    return script
