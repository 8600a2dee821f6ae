"""Between the HTTP side and the mesh side of the gateway: one request in, a stream of events out."""

from typing import Final, Protocol

import msgspec

from common.errors import Failure
from common.ids import RequestId
from common.messages.control import EmittedTokens
from common.messages.sampling import SamplingParams
from services.scheduling.placement import Placement

__all__ = ["Failed", "GenerationRequest", "Mesh", "Placed", "Placement", "PromptCached", "RequestStream", "StreamEvent"]

MOST_UNREAD: Final = 1 << 15
"""Events of one request that may wait for the HTTP side, which waits itself while a client does not read: far more than
lie there while it is merely busy. The time that a client may take ends most such requests before."""


class GenerationRequest(msgspec.Struct, frozen=True):
    """What the HTTP side asks of the mesh: token ids in, nothing of text or HTTP."""

    request: RequestId
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    choices: int = 1
    stop_tokens: tuple[int, ...] = ()
    min_tokens: int = 0
    split: str | int | float | None = None
    """Placement override: "full", tokens (int) or a share of the prompt (float); None: the mesh's policy."""
    user: str = ""
    """Whom or what it is for, where the client says so."""
    traceparent: str = ""
    """The W3C trace context that came with it, unread; empty: none."""
    key: str = ""
    """The name of the API key that it came with; empty where none is asked for."""
    call: RequestId | None = None
    """Of a prompt of a batch that is not the first: the request that is."""


class Placed(msgspec.Struct, frozen=True):
    """The request has been sent to its instances; comes before any token."""

    placement: Placement


class PromptCached(msgspec.Struct, frozen=True):
    """The KV of so many leading tokens of the prompt was in the mesh already; the last one counts."""

    tokens: int


class Failed(msgspec.Struct, frozen=True):
    """The request ended without (all of) an answer; the last event."""

    failure: Failure


StreamEvent = Placed | PromptCached | EmittedTokens | Failed
"""EmittedTokens are gap-free and in order per choice; the stream is over when every choice has had a finish."""


class RequestStream(Protocol):
    """One request in flight. Owned by the HTTP handler, which must `close` it."""

    async def next_many(self) -> list[StreamEvent]:
        """At least one event, and whatever else is there, oldest first; cancel-safe."""
        ...

    def close(self, *, is_answered: bool = False) -> None:
        """Forget the request; if it is unfinished the mesh drops it within a step. Idempotent. `is_answered`: because
        its text has ended, and not because nobody waits for it.
        """
        ...


class Mesh(Protocol):
    """What the HTTP side sees of the mesh."""

    def submit(self, request: GenerationRequest) -> RequestStream:
        """Accept a request; every refusal is a Failed event on the stream, never an exception."""
        ...

    def context_length(self) -> int | None:
        """Most tokens (prompt + output) that the joined decode instances serve; None before one has joined."""
        ...

    def open_context(self, prompt_tokens: int) -> int | None:
        """The same for a request that sets no limit to its answer, and so may run wherever an ordinary one has room."""
        ...

    def not_ready(self) -> str | None:
        """Why no request can be served now (words for an operator); None when one can."""
        ...
