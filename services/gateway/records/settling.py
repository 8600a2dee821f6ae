"""Requests that have ended, passed on once all that will be heard of them has been heard."""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from common.ids import RequestId
from services.gateway.records.trace_types import RequestTrace

PATIENCE_S: Final = 2.0
"""For P's last word after the end of a request: P may be lost, and never say it."""


class Settling:
    """Passes each ended request on to `on_settled` once: at its end, or within PATIENCE_S where P has yet to speak.

    `find` knows a trace as it is now. Everything runs on the event loop; `close` passes on all that still wait.
    """

    def __init__(
        self, find: Callable[[RequestId], RequestTrace | None], on_settled: Callable[[RequestTrace], None]
    ) -> None:
        self._find = find
        self._on_settled = on_settled
        self._pending: dict[RequestId, tuple[RequestTrace, asyncio.TimerHandle]] = {}

    def ended(self, trace: RequestTrace) -> None:
        """A request has ended, as it stands now."""
        if is_settled(trace):
            self._on_settled(trace)
        elif trace.request not in self._pending:
            timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._settle, trace.request)
            self._pending[trace.request] = trace, timer

    def close(self) -> None:
        """Wait for nobody any more."""
        for request in list(self._pending):
            self._settle(request)

    def _settle(self, request: RequestId) -> None:
        then, timer = self._pending.pop(request)
        timer.cancel()
        now = self._find(request)
        self._on_settled(now or msgspec.structs.replace(then, age_s=then.age_s + PATIENCE_S))


def is_settled(trace: RequestTrace) -> bool:
    """Whether P, if it had a part in the request, has let go of it."""
    return trace.placement is None or trace.placement.prefill is None or trace.released_s is not None
