"""The traces of the last requests, written while they run."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import msgspec

from common.clock import Clock
from common.errors import Failure
from common.ids import InstanceId, RequestId
from common.messages.control import EmittedTokens, FromWorker, KVLanded, PrefillReleased, TokensEmitted
from services.gateway.openai.types import Usage
from services.gateway.records.observer import SilentObserver
from services.gateway.records.trace_types import FINISHED, LandedKV, RequestTrace
from services.gateway.stream import GenerationRequest
from services.scheduling.placement import Placement


@dataclass(slots=True)
class _Kept:
    arrived_at: float
    trace: RequestTrace


class Traces(SilentObserver):
    """Keeps the traces of the last `limit` requests, running ones included; the oldest arrival makes way.

    Told by the mesh what happens to requests and, as an Observer, how they end: only the HTTP side knows a client that
    has gone from one whose answer a stop string has ended. Every call is O(1), and one about a request that is not
    kept does nothing.  `on_ratio` is told the predicted over the real time of the first token of each kept request,
    `on_ended` each kept request that has ended, as it stands then.
    """

    def __init__(
        self,
        limit: int,
        policy: str,
        clock: Clock,
        on_ratio: Callable[[float], None],
        on_ended: Callable[[RequestTrace], None] = lambda _: None,
    ) -> None:
        self.limit = limit
        self._policy = policy
        self._clock = clock
        self._on_ratio = on_ratio
        self._on_ended = on_ended
        self._kept: OrderedDict[RequestId, _Kept] = OrderedDict()
        self._batches: dict[RequestId, list[RequestId]] = {}
        """Of calls with several prompts that run: the requests of all but the first, which has the call's id."""

    def __len__(self) -> int:
        return len(self._kept)

    # ------------------------------------------------------------ what the mesh tells

    def arrived(self, request: GenerationRequest) -> None:
        """The mesh has a new request."""
        if self.limit == 0:
            return
        trace = RequestTrace(
            request=request.request,
            policy=self._policy,
            prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
            choices=request.choices,
            asked_split=request.split,
            traceparent=request.traceparent,
            call=request.call,
            key=request.key,
        )
        self._kept[request.request] = _Kept(self._clock.now(), trace)
        if request.call is not None:
            self._batches.setdefault(request.call, []).append(request.request)
        if len(self._kept) > self.limit:
            self._kept.popitem(last=False)

    def placed(self, request: RequestId, placement: Placement) -> None:
        """The request was sent to its instances; one that is placed anew has nothing landed there yet."""
        if (kept := self._kept.get(request)) is not None:
            trace = kept.trace
            trace.placed_s, trace.placement = self._since(kept), placement
            trace.landed = trace.released_s = trace.prefill_times = None
            trace.cached_tokens = 0

    def reused(self, request: RequestId, tokens: int) -> None:
        """The KV of so many leading tokens was there."""
        if (kept := self._kept.get(request)) is not None:
            kept.trace.cached_tokens = tokens

    def heard(self, message: FromWorker) -> None:
        """A worker's message. Only the first of a kind counts, from the instance that the request was placed on."""
        match message:
            case KVLanded(request=request):
                self._note_landed(self._kept.get(request), message)
            case PrefillReleased(request=request):
                self._note_released(self._kept.get(request), message)
            case TokensEmitted(began=began):
                for begun in began:
                    self._note_begun(self._kept.get(begun.request), message.instance, begun.seconds)
            case _:
                pass

    def delivered(self, tokens: EmittedTokens) -> None:
        """Tokens were passed on to the client's stream."""
        if (kept := self._kept.get(tokens.request)) is None:
            return
        trace = kept.trace
        trace.tokens += len(tokens.tokens)
        trace.last_token_s = self._since(kept)
        if trace.first_token_s is None:
            trace.first_token_s = trace.last_token_s
            self._compare(trace)

    # ------------------------------------------------------------ what the HTTP side tells

    def finished(self, request: RequestId, usage: Usage, seconds: float) -> None:  # noqa: ARG002
        """See Observer."""
        for one in self._prompts(request):
            self._end(one, FINISHED, None)

    def failed(self, request: RequestId, failure: Failure, seconds: float) -> None:  # noqa: ARG002
        """See Observer."""
        for one in self._prompts(request):
            self._end(one, failure.kind.value, failure)

    # ------------------------------------------------------------ what is asked

    def trace(self, request: RequestId) -> RequestTrace | None:
        """What is known of `request` now; None where it is not kept."""
        return None if (kept := self._kept.get(request)) is None else self._copy(kept)

    def newest(self, count: int) -> tuple[RequestTrace, ...]:
        """The last `count` requests, the newest first."""
        return tuple([self._copy(kept) for kept in islice(reversed(self._kept.values()), count)])

    def _note_landed(self, kept: _Kept | None, message: KVLanded) -> None:
        if kept is None or kept.trace.placement is None or kept.trace.landed is not None:
            return
        if kept.trace.placement.decode == message.instance:
            at_s = self._since(kept)
            kept.trace.landed = LandedKV(
                at_s, message.payload_bytes, message.seconds, message.backend, message.first_byte_s
            )

    def _note_released(self, kept: _Kept | None, message: PrefillReleased) -> None:
        if kept is None or kept.trace.placement is None or kept.trace.released_s is not None:
            return
        if kept.trace.placement.prefill == message.instance:
            kept.trace.released_s, kept.trace.prefill_times = self._since(kept), message.times

    def _note_begun(self, kept: _Kept | None, instance: InstanceId, seconds: float) -> None:
        if kept is None or kept.trace.placement is None or kept.trace.first_token_s is not None:
            return
        if kept.trace.placement.decode == instance:
            kept.trace.decode_computed_s = seconds

    def _compare(self, trace: RequestTrace) -> None:
        real_s = trace.since_placed(trace.first_token_s)
        if trace.prediction is not None and real_s:
            self._on_ratio(trace.prediction.first_token_s / real_s)

    def _prompts(self, call: RequestId) -> list[RequestId]:
        """The requests of a call, which has ended."""
        return [call, *self._batches.pop(call, ())]

    def _end(self, request: RequestId, outcome: str, failure: Failure | None) -> None:
        if (kept := self._kept.get(request)) is not None:
            kept.trace.ended_s, kept.trace.outcome, kept.trace.failure = self._since(kept), outcome, failure
            self._on_ended(self._copy(kept))

    def _since(self, kept: _Kept) -> float:
        return self._clock.now() - kept.arrived_at

    def _copy(self, kept: _Kept) -> RequestTrace:
        return msgspec.structs.replace(kept.trace, age_s=self._since(kept))
