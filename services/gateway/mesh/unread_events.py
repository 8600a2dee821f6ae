"""What has come for one request and was not read yet."""

import asyncio
from collections.abc import Callable

from common.errors import Failure, FailureKind
from common.ids import RequestId
from services.gateway.stream import MOST_UNREAD, Failed, Placement, StreamEvent

_UNREAD = f"the client has left {MOST_UNREAD} tokens of its answer unread; the request was cancelled"


class UnreadEvents:
    """One request in flight; the mesh puts events in, the HTTP handler takes them out and closes it."""

    def __init__(self, request: RequestId, on_close: Callable[[RequestId, bool], None]) -> None:
        self._request = request
        self._on_close = on_close
        self.placement: Placement | None = None
        self._events: list[StreamEvent] = []
        self._arrived = asyncio.Event()
        self._is_closed = False

    def put(self, event: StreamEvent) -> None:
        """Hand one event to the HTTP side. Where far too many lie there unread, they end with a failure."""
        self._events.append(event)
        if len(self._events) > MOST_UNREAD and not self._is_closed:
            self._events.append(Failed(Failure(FailureKind.CANCELLED, _UNREAD)))
            self.close()
        self._arrived.set()

    async def next_many(self) -> list[StreamEvent]:
        """See RequestStream.next_many."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        events, self._events = self._events, []
        return events

    def close(self, *, is_answered: bool = False) -> None:
        """Forget the request; the mesh drops what it still holds of it. See RequestStream.close."""
        if not self._is_closed:
            self._is_closed = True
            self._on_close(self._request, is_answered)
