"""The mesh as the gateway sees it: performs what the life cycle and the membership decide, over the bus."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import assert_never

from common.bus.server import BusServer
from common.clock import Clock
from common.costs.step import Step
from common.entropy import Entropy
from common.errors import Failure, FailureKind
from common.ids import InstanceId, RequestId, TransferId
from common.messages.control import (
    Drain,
    FromWorker,
    Heartbeat,
    JobFailed,
    KVLanded,
    Leaving,
    LinkMeasured,
    PrefillReleased,
    PrefixReused,
    Register,
    Resume,
    StepMeasured,
    TokensEmitted,
    ToWorker,
)
from common.messages.operator import InstanceInfo
from common.tasks import TaskScope
from services.gateway.mesh.canaries import Canaries
from services.gateway.mesh.measurements import Measurements
from services.gateway.mesh.roster import Lost, Roster
from services.gateway.mesh.unread_events import UnreadEvents
from services.gateway.records.metering import WorkerMeter
from services.gateway.records.traces import Traces
from services.gateway.stream import Failed, GenerationRequest, Placed, Placement, PromptCached, StreamEvent
from services.scheduling.lifecycle.events import (
    Arrived,
    ClientGone,
    Deliver,
    Fail,
    Finish,
    Holdings,
    LifecycleEffect,
    LifecycleEvent,
    Place,
    Reused,
    Send,
    ShutdownRequested,
)
from services.scheduling.lifecycle.lifecycle import Lifecycle
from services.scheduling.membership.links import Links
from services.scheduling.membership.members import LoadReported, LossReason, MemberJoined, MemberLost
from services.scheduling.membership.membership import (
    KeyWithdrawn,
    Membership,
    MembershipEffect,
    MembershipEvent,
    MessageReceived,
    PeerUnreachable,
    Reply,
)
from services.scheduling.request import RequestSpec
from services.scheduling.tick import Tick

_log = logging.getLogger(__name__)

TICK_S = 0.1

_LOSS_LEVELS = {
    LossReason.LEFT: logging.INFO,
    LossReason.SILENT: logging.WARNING,
    LossReason.UNREACHABLE: logging.WARNING,
    LossReason.REPLACED: logging.WARNING,
    LossReason.REVOKED: logging.WARNING,
}


class MeshShell:
    """Implements the `Mesh` protocol on a life cycle, a membership and a bus.

    Everything runs on the event loop; decisions are made by the two pure machines, and their effects are performed
    in the order given.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        membership: Membership,
        bus: BusServer[FromWorker, ToWorker],
        clock: Clock,
        meter: WorkerMeter,
        traces: Traces,
        entropy: Entropy,
        *,
        deadline_s: float,
        silence_s: float | None = None,
    ) -> None:
        self._lifecycle = lifecycle
        self._membership = membership
        self._bus = bus
        self._clock = clock
        self._meter = meter
        self._traces = traces
        self._entropy = entropy
        self._links = Links()
        self._roster = Roster(clock)
        self._measurements = Measurements(self._send)
        self._canaries = Canaries(silence_s, self._roster.member, self._send, entropy)
        self._deadline_s = deadline_s
        self._streams: dict[RequestId, UnreadEvents] = {}
        self._tasks = TaskScope("mesh")
        self._ended = asyncio.Event()
        self._is_stopping = False
        self._events: deque[LifecycleEvent | MembershipEvent] = deque()
        """The event being handled, and those that came of it."""

    async def start(self) -> None:
        """Begin to listen to workers and to the clock."""
        self._tasks.start(self._receive(), "receive")
        self._tasks.start(self._tick(), "tick")

    async def close(self) -> None:
        """Stop listening. Requests still in flight fail first."""
        for request in list(self._streams):
            self._fail(request, Failure(FailureKind.SHUTTING_DOWN, "the gateway is stopping"))
        self._measurements.close()
        await self._tasks.close()

    # ------------------------------------------------------------ the Mesh protocol

    def submit(self, request: GenerationRequest) -> UnreadEvents:
        """See Mesh.submit."""
        stream = self._streams[request.request] = UnreadEvents(request.request, self._client_gone)
        now = self._clock.now()
        spec = RequestSpec(
            request=request.request,
            prompt=request.prompt,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            deadline_at=now + self._deadline_s,
            choices=request.choices,
            stop_tokens=request.stop_tokens,
            min_tokens=request.min_tokens,
            split=request.split,
            user=request.user,
        )
        self._traces.arrived(request)
        transfer = TransferId(f"{request.request}:{self._entropy.hex(4)}")
        self._handle(Arrived(now, spec, transfer, self._entropy.take(16)))
        return stream

    def context_length(self) -> int | None:
        """See Mesh.context_length."""
        return self._lifecycle.context_length()

    def open_context(self, prompt_tokens: int) -> int | None:
        """See Mesh.open_context."""
        return self._lifecycle.open_context(prompt_tokens)

    def not_ready(self) -> str | None:
        """See Mesh.not_ready."""
        return self._lifecycle.not_ready() or self._canaries.not_ready(self._lifecycle.pairs())

    def shut_down(self) -> None:
        """Accept nothing new; what runs goes on."""
        self._is_stopping = True
        self._handle(ShutdownRequested())

    async def until_idle(self) -> None:
        """Ends when no request is in flight and every prefill slot is free."""
        while self._streams or not self._lifecycle.is_idle():
            self._ended.clear()
            await self._ended.wait()

    def holdings(self) -> Holdings:
        """What the gateway holds for requests, ended ones whose prefill slot is still taken included."""
        return self._lifecycle.holdings()

    def links(self) -> tuple[LinkMeasured, ...]:
        """The measured links between instances."""
        return self._links.table()

    def instances(self) -> tuple[InstanceInfo, ...]:
        """Every member: what it registered, and what it held last."""
        return self._roster.instances()

    def lost_instances(self) -> tuple[Lost, ...]:
        """Those that were members and have not joined again."""
        return self._roster.lost()

    async def measure(self, instance: InstanceId, step: Step, repeats: int) -> StepMeasured | None:
        """Let a member measure a step; None where it was lost meanwhile."""
        return await self._measurements.measure(instance, step, repeats)

    def drain(self, instance: InstanceId, *, draining: bool) -> None:
        """Tell a member to want nothing new, or (False) to be given requests again. It says so in its next report."""
        self._send(instance, Drain() if draining else Resume())

    def key_withdrawn(self, instance: InstanceId) -> None:
        """End the membership that `instance` has by a key that is not allowed any more."""
        self._handle(KeyWithdrawn(instance))

    # ------------------------------------------------------------ events in

    async def _receive(self) -> None:
        while True:
            peer, message = await self._bus.receive()
            try:
                self._meter.heard(message, self._placement)
                self._traces.heard(message)
                self._hear(peer, message)
            except Exception:
                # Whatever one worker says, the others are heard.
                _log.exception("a %s of %s could not be taken in", type(message).__name__, message.instance)

    def _hear(self, peer: bytes, message: FromWorker) -> None:
        self._canaries.heard(message)
        match message:
            case Register() | Heartbeat() | Leaving():
                self._handle(MessageReceived(self._clock.now(), peer, message))
            case LinkMeasured():
                self._link_measured(message)
            case StepMeasured():
                self._measurements.measured(message)
            case TokensEmitted() | PrefillReleased() | PrefixReused() | KVLanded() | JobFailed():
                self._handle(message)
            case _:
                assert_never(message)

    def _link_measured(self, message: LinkMeasured) -> None:
        if not self._links.measured(message):
            return
        self._handle(message)
        self._meter.link_measured(message)
        if message.failed:
            reasons = "; ".join(message.failed)
            _log.warning("%s takes KV from %s by a slower path: %s", message.instance, message.peer, reasons)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._handle(Tick(self._clock.now()))

    def _client_gone(self, request: RequestId, is_answered: bool) -> None:
        if self._pop(request) is not None:
            self._canaries.ended(request)
            self._handle(ClientGone(request, is_answered))

    # ------------------------------------------------------------ effects out

    def _handle(self, event: LifecycleEvent | MembershipEvent) -> None:
        """Decide on `event`, and then on the events that performing the decision brought about, one after another:
        the effects of one event are all performed before the next is decided on.
        """
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            try:
                self._decide(self._events[0])
            except Exception:
                # A fault of this program. The machines raise before they change anything, so the others go on.
                _log.exception("event %r could not be handled", self._events[0])
            self._events.popleft()
        self._ended.set()

    def _decide(self, event: LifecycleEvent | MembershipEvent) -> None:
        match event:
            case MessageReceived() | PeerUnreachable() | KeyWithdrawn():
                self._perform_all(self._membership.handle(event))
            case Tick():
                self._perform_all(self._membership.handle(event))
                self._perform_all(self._lifecycle.handle(event))
                if not self._is_stopping:
                    # Then no pair takes requests, and what was asked of them before is to be answered in peace.
                    self._canaries.tick(event.now, self._lifecycle.pairs())
            case _:
                self._perform_all(self._lifecycle.handle(event))

    def _perform_all(self, effects: Iterable[LifecycleEffect | MembershipEffect]) -> None:
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: LifecycleEffect | MembershipEffect) -> None:
        match effect:
            case Send(instance, message):
                self._send(instance, message)
            case Place(request, placement):
                self._traces.placed(request, placement)
                self._note_placement(request, placement)
                self._canaries.placed(request, placement)
                self._put(request, Placed(placement))
            case Reused(request, tokens):
                self._traces.reused(request, tokens)
                self._put(request, PromptCached(tokens))
            case Deliver(tokens):
                self._traces.delivered(tokens)
                self._canaries.delivered(tokens.request)
                self._put(tokens.request, tokens)
            case Finish(request):
                self._canaries.ended(request)
                self._pop(request)
            case Fail(request, failure):
                self._canaries.ended(request)
                self._fail(request, failure)
            case Reply(peer, message):
                self._bus.send(peer, message)
            case MemberJoined(member):
                _log.info("%s instance %s joined", member.role, member.instance)
                self._roster.heard(effect)
                self._handle(effect)
                for meet in self._links.joined(effect):
                    self._send(meet.instance, meet.message)
            case MemberLost(instance, _, reason):
                _log.log(_LOSS_LEVELS[reason], "instance %s is lost: %s", instance, reason)
                self._meter.lost(instance)
                self._links.lost(effect)
                self._roster.heard(effect)
                self._measurements.lost(instance)
                self._canaries.lost(instance)
                self._handle(effect)
            case LoadReported():
                self._meter.load_reported(effect)
                self._roster.heard(effect)
                self._handle(effect)
            case _:
                assert_never(effect)

    def _send(self, instance: InstanceId, message: ToWorker) -> None:
        if (peer := self._membership.peer(instance)) is None:
            _log.debug("%s for %s, which is not here any more", type(message).__name__, instance)
        elif not self._bus.send(peer, message):
            self._handle(PeerUnreachable(peer))

    def _pop(self, request: RequestId) -> UnreadEvents | None:
        return self._streams.pop(request, None)

    def _note_placement(self, request: RequestId, placement: Placement) -> None:
        if (stream := self._streams.get(request)) is not None:
            stream.placement = placement

    def _placement(self, request: RequestId) -> Placement | None:
        """Where a request in flight is; None before it is placed, and once its client has gone."""
        return None if (stream := self._streams.get(request)) is None else stream.placement

    def _put(self, request: RequestId, event: StreamEvent) -> None:
        if (stream := self._streams.get(request)) is not None:
            stream.put(event)

    def _fail(self, request: RequestId, failure: Failure) -> None:
        if (stream := self._pop(request)) is not None:
            _log.info("request %s failed: %s: %s", request, failure.kind, failure.message)
            stream.put(Failed(failure))
