"""What a prefill and a decode instance say that compute nothing: at once, in the words of the real ones. Pure."""

from collections.abc import Sequence

import msgspec

from common.ids import Generation, InstanceId, RequestId
from common.messages.control import (
    Abort,
    EmittedTokens,
    FinishReason,
    FromWorker,
    KVLanded,
    PrefillReleased,
    RunDecode,
    RunPrefill,
    TokensEmitted,
    ToWorker,
)

_LETTERS = tuple(range(ord("a"), ord("z") + 1))
"""Tokens of the model without weights are bytes."""


class InstantPrefill:
    """Has computed, and given away, whatever it is asked to."""

    def __init__(self, instance: InstanceId) -> None:
        self._instance = instance

    def answers(self, message: ToWorker, generation: Generation) -> Sequence[FromWorker]:
        """What it says to `message`."""
        if isinstance(message, RunPrefill):
            return (PrefillReleased(self._instance, generation, message.request),)
        return ()

    def step(self, generation: Generation) -> FromWorker | None:  # noqa: ARG002 - a prefill instance has no steps
        """Nothing."""
        return None

    def forget(self) -> None:
        """The life is over."""


class _Job(msgspec.Struct):
    max_tokens: int
    emitted: int = 0


class InstantDecode:
    """Has KV as soon as it is asked to take it, and one token of each request in each step."""

    def __init__(self, instance: InstanceId) -> None:
        self._instance = instance
        self._jobs: dict[RequestId, _Job] = {}

    def answers(self, message: ToWorker, generation: Generation) -> Sequence[FromWorker]:
        """What it says to `message` before any step."""
        match message:
            case RunDecode(request=request, ticket=ticket, max_tokens=max_tokens):
                self._jobs[request] = _Job(max_tokens)
                return () if ticket is None else (self._landed(request, generation),)
            case Abort(request):
                self._jobs.pop(request, None)
        return ()

    def step(self, generation: Generation) -> TokensEmitted | None:
        """One token of every request, as one step of a real instance is one message; None when there is none."""
        if not self._jobs:
            return None
        items = tuple(self._token(request, job) for request, job in self._jobs.items())
        for item in items:
            if item.finish is not None:
                del self._jobs[item.request]
        return TokensEmitted(self._instance, generation, items)

    def forget(self) -> None:
        """The life is over."""
        self._jobs.clear()

    def _token(self, request: RequestId, job: _Job) -> EmittedTokens:
        first, job.emitted = job.emitted, job.emitted + 1
        finish = FinishReason.LENGTH if job.emitted == job.max_tokens else None
        return EmittedTokens(request, 0, first, (_LETTERS[first % len(_LETTERS)],), finish)

    def _landed(self, request: RequestId, generation: Generation) -> KVLanded:
        return KVLanded(
            instance=self._instance,
            generation=generation,
            request=request,
            payload_bytes=0,
            seconds=0.0,
            backend="none",
            casting_side="nobody",
        )
