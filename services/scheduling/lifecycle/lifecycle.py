"""The life of a request at the gateway: queued, placed, running, ended. Every way to end is here."""

from typing import Final, assert_never

import msgspec

from common.errors import Failure, FailureKind
from common.ids import RequestId
from common.messages.control import (
    Abort,
    JobFailed,
    KVLanded,
    LinkMeasured,
    PrefillReleased,
    PrefixReused,
    TokensEmitted,
)
from services.scheduling.ledgers.fleet import Fleet
from services.scheduling.ledgers.output_lengths import OutputLengths, RunningQuantile
from services.scheduling.ledgers.work_ledger import Share
from services.scheduling.lifecycle.events import (
    Arrived,
    ClientGone,
    Deliver,
    Fail,
    Finish,
    Holdings,
    IllegalEvent,
    LifecycleEffect,
    LifecycleEvent,
    Place,
    Reused,
    Send,
    ShutdownRequested,
)
from services.scheduling.lifecycle.jobs import jobs_of
from services.scheduling.lifecycle.numbering import NumberingError, TokenNumbers
from services.scheduling.lifecycle.running import Life, Running, late_at_work, late_in_queue, loss_of, name_of
from services.scheduling.lifecycle.waiting import WaitingLines
from services.scheduling.membership.members import LoadReported, MemberJoined, MemberLost
from services.scheduling.membership.proofs import Pair, pairs_of
from services.scheduling.placement import Placement
from services.scheduling.policies.routing import MeshView, PlacementPolicy, Wait
from services.scheduling.request import RequestSpec
from services.scheduling.tick import Tick

ORDINARY_ANSWER: Final = 4096
"""Tokens that the answer to a request without max_tokens is given room for, wherever there is that much."""


class Limits(msgspec.Struct, frozen=True):
    """How much the gateway takes on."""

    queue: int = 256
    """Requests that may wait for a place."""
    prefill_slots: int = 2
    """Requests at one prefill instance at a time."""
    decode_batches: int = 2
    """Requests outstanding at a decode instance, in units of its max_batch: one batch runs, the rest gets its KV."""


class Lifecycle:
    """All requests of one gateway. `handle` takes the events in order; its effects are performed in order.

    An accepted request ends in exactly one of Finish, Fail, or, after ClientGone, silence. Whatever ends it, every
    member that may hold something of it is sent an Abort, but for D after its last token and for the side that said
    itself that it holds nothing. A slot of P is taken from RunPrefill to PrefillReleased or the loss of P, however
    the request ends. Events of requests and of lives that are over are ignored.

    Time is the latest `now` of an Arrived or a Tick; the deadlines sent to workers are late by up to one tick.
    """

    def __init__(self, limits: Limits, policy: PlacementPolicy, lengths: OutputLengths | None = None) -> None:
        self._limits = limits
        self._policy = policy
        self._lengths = lengths or RunningQuantile()
        self._fleet = Fleet(limits.prefill_slots, limits.decode_batches)
        self._waiting = WaitingLines()
        self._running: dict[RequestId, Running] = {}
        self._now = 0.0
        self._shutting_down = False

    def handle(self, event: LifecycleEvent) -> list[LifecycleEffect]:
        """What follows from one event. Raises IllegalEvent, with nothing changed, where it cannot have happened."""
        match event:
            case TokensEmitted():
                return self._deliver(event)
            case PrefillReleased(instance=instance, generation=generation, request=request):
                return self._dispatch() if self._fleet.release(instance, generation, request) else []
            case KVLanded():
                return self._note_landed(event)
            case PrefixReused():
                return self._note_reused(event)
            case JobFailed():
                return self._fail_job(event)
            case Arrived():
                return self._arrive(event)
            case ClientGone(request=request, is_answered=is_answered):
                return self._forget(request, is_answered=is_answered)
            case MemberJoined(member=member):
                self._fleet.join(member)
                return self._dispatch()
            case MemberLost():
                return self._lose(event)
            case LinkMeasured():
                self._fleet.measured(event)
                return []
            case LoadReported():
                return self._note_load(event)
            case Tick(now=now):
                return self._expire(now)
            case ShutdownRequested():
                self._shutting_down = True
                return []
            case _ as unreachable:
                assert_never(unreachable)

    def holdings(self) -> Holdings:
        """What is held now."""
        slots = self._fleet.slots_taken()
        return Holdings(requests=len(self._running), queued=len(self._waiting), slots=slots)

    def is_idle(self) -> bool:
        """Whether nothing is held."""
        return self.holdings() == Holdings(requests=0, queued=0, slots=0)

    def not_ready(self) -> str | None:
        """Why no ordinary request can be served now; None when one can."""
        return "the gateway is shutting down" if self._shutting_down else self._policy.not_ready(self._view())

    def pairs(self) -> tuple[Pair, ...]:
        """The pairs of members that an ordinary request may be placed on now."""
        return () if self._shutting_down else pairs_of(self._policy, self._view())

    def context_length(self) -> int | None:
        """Most tokens (prompt + output) of a request that some decode instance holds, one that drains included; None
        before one has joined.
        """
        return max(self._fleet.decode_limits(), default=None)

    def open_context(self, prompt_tokens: int) -> int | None:
        """The same of a request that says no max_tokens: what all those hold that have room for an ordinary answer to
        such a prompt. Any of them may then serve it, and its answer is no longer at one than at another.
        """
        limits = self._fleet.decode_limits()
        room = max(limits, default=0) - prompt_tokens
        needed = prompt_tokens + min(ORDINARY_ANSWER, room // 2)
        return min((limit for limit in limits if limit >= needed), default=None)

    def check(self) -> None:
        """Count the ledgers of all members anew; raises LedgerError. For simulations and tests."""
        self._fleet.check()

    def _view(self, request: RequestSpec | None = None) -> MeshView:
        """As a policy sees it that is asked for a place for `request`."""
        expected = None if request is None else self._lengths.predict(request)
        return self._fleet.view(request, expected, len(self._waiting))

    # ------------------------------------------------------------ arrival and placing

    def _arrive(self, event: Arrived) -> list[LifecycleEffect]:
        request = event.spec.request
        if (state := self._state_of(request)) is not None:
            raise IllegalEvent(f"Arrived of request {request!r}, which is {state}; every request needs a new id")
        self._now = event.now
        if event.spec.is_scored:
            # P makes no logits: whatever the policy is, it places a request that says its own split.
            event = msgspec.structs.replace(event, spec=msgspec.structs.replace(event.spec, split=0))
        if self._shutting_down:
            return [Fail(request, Failure(FailureKind.SHUTTING_DOWN, "the gateway is shutting down; send it again"))]
        if (refusal := self._refusal(event.spec)) is not None:
            return [Fail(request, refusal)]
        line = self._waiting.join(event, needs_prefill=self._policy.needs_prefill(event.spec))
        effects = self._dispatch()
        if request in self._waiting and len(self._waiting) > self._limits.queue:
            self._waiting.leave(request)
            message = (
                f"{self._limits.queue} requests wait already, the most that may; this one would wait for "
                f"{line.waits_for}; send it again later"
            )
            effects.append(Fail(request, Failure(FailureKind.OVERLOADED, message)))
        return effects

    def _refusal(self, spec: RequestSpec) -> Failure | None:
        """Why a new request can never be served. What only a draining instance could hold may be sent again."""
        refusal = self._policy.refusal(spec, self._view())
        if refusal is None or refusal.kind is not FailureKind.INVALID_REQUEST:
            return refusal
        is_for_ever = self._policy.refusal(spec, self._fleet.everyone()) is not None
        return refusal if is_for_ever else _gone("drains", refusal)

    def _state_of(self, request: RequestId) -> str | None:
        if request in self._waiting:
            return "queued"
        if request in self._running:
            return "running"
        return "ended but for its slot of a prefill instance" if self._fleet.is_held(request) else None

    def _dispatch(self) -> list[LifecycleEffect]:
        """Place heads of the lines, the older first, until neither has a place."""
        effects: list[LifecycleEffect] = []
        while (placed := self._place_one()) is not None:
            effects += placed
        return effects

    def _place_one(self) -> list[LifecycleEffect] | None:
        for line in self._waiting.occupied():
            head = line.head()
            if head.spec.deadline_at <= self._now:
                return self._end_waiting(head, late_in_queue(line.waits_for))
            try:
                place = self._policy.place(head.spec, self._view(head.spec))
            except Exception as error:
                # A fault of a plug-in costs the request that it was asked about, and not what was decided before.
                return self._end_waiting(head, Failure(FailureKind.ENGINE_FAILED, f"the policy failed: {error!r}"))
            match place:
                case Placement() as placement:
                    self._waiting.leave(head.spec.request)
                    return self._start(head, placement)
                case Wait(reason=reason):
                    line.waits_for = reason
                case _ as unreachable:
                    assert_never(unreachable)
        return None

    def _start(self, arrived: Arrived, placement: Placement) -> list[LifecycleEffect]:
        spec = arrived.spec
        decode = self._fleet.member(placement.decode)
        prefill = None if placement.prefill is None else self._fleet.member(placement.prefill)
        self._running[spec.request] = Running(
            spec=spec,
            prefill=None if prefill is None else (prefill.instance, prefill.generation),
            decode=(decode.instance, decode.generation),
            numbers=TokenNumbers(spec.choices),
            landed=prefill is None,
            split=placement.split,
        )
        held, split = self._fleet.held(spec), placement.split
        if prefill is not None:
            computed = split - min(held.get(prefill.instance, 0), split)
            self._fleet.give(prefill.instance, spec.request, Share(computed, split))
        self._fleet.give(decode.instance, spec.request, self._share(spec, max(split, held.get(decode.instance, 0))))
        deadline_s = spec.deadline_at - self._now
        jobs = jobs_of(arrived, placement.split, prefill, decode, deadline_s)
        return [Place(spec.request, placement), *jobs]

    def _share(self, spec: RequestSpec, there: int) -> Share:
        """At D, with the KV of the first `there` tokens there or to come; it computes one token in any case."""
        prompt, expected = len(spec.prompt), self._lengths.predict(spec)
        return Share(
            prompt_tokens=max(1, prompt - there),
            kv_tokens=prompt,
            expected_output=spec.max_tokens if expected is None else max(1, int(expected)),
            most_output=spec.max_tokens,
            choices=spec.choices,
        )

    # ------------------------------------------------------------ what workers say

    def _deliver(self, event: TokensEmitted) -> list[LifecycleEffect]:
        effects: list[LifecycleEffect] = []
        life = (event.instance, event.generation)
        # A sequence about to end makes room, too: what is sent now is there when it has ended.
        makes_room = False
        if event.progress is not None:
            self._fleet.progressed(*life, event.progress)
        for item in event.items:
            run = self._running.get(item.request)
            if run is None or run.decode != life:
                continue
            try:
                tokens = run.numbers.accept(item)
            except NumberingError as error:
                failure = Failure(FailureKind.ENGINE_FAILED, f"{name_of(life)}: {error}", event.instance)
                effects += self._fail(run, failure)
                makes_room = True
                continue
            if tokens is None:
                continue
            if not run.emitted:
                self._land(run)
                self._fleet.computed(*run.decode, item.request)
            makes_room |= self._fleet.emitted(*run.decode, tokens)
            run.emitted += len(tokens.tokens)
            effects.append(Deliver(tokens))
            if run.numbers.is_complete():
                effects.append(Finish(item.request))
                self._lengths.observe(run.spec, run.emitted // run.spec.choices)
                self._retire(run)
                makes_room = True
        return effects + self._dispatch() if makes_room else effects

    def _note_landed(self, event: KVLanded) -> list[LifecycleEffect]:
        run = self._running.get(event.request)
        if run is not None and run.decode == (event.instance, event.generation):
            self._land(run)
        return []

    def _note_load(self, event: LoadReported) -> list[LifecycleEffect]:
        was_draining = self._fleet.is_draining(event.instance, event.generation)
        self._fleet.report(event)
        if event.load.draining:
            return self._refuse_waiting() + self._dispatch()
        return self._dispatch() if was_draining else []

    def _note_reused(self, event: PrefixReused) -> list[LifecycleEffect]:
        run = self._running.get(event.request)
        life = event.instance, event.generation
        if run is None or life not in run.lives():
            return []
        part = run.split if life == run.prefill else len(run.spec.prompt)
        before = 0 if life == run.prefill else run.split
        self._fleet.reused(*life, event.request, part - max(before, min(event.tokens, part)))
        if life == run.decode and event.tokens < run.split:
            return []  # it saves the wire, but P has computed it
        effects: list[LifecycleEffect] = []
        if event.tokens > run.reused:
            run.reused = min(event.tokens, len(run.spec.prompt))
            effects.append(Reused(event.request, run.reused))
        if life == run.decode and run.prefill is not None and not run.landed:
            # D has all that P was to compute. P's slot is free when it says so.
            self._land(run)
            effects.append(Send(run.prefill[0], Abort(event.request)))
        return effects

    def _land(self, run: Running) -> None:
        run.landed = True
        if run.prefill is not None:
            self._fleet.computed(*run.prefill, run.spec.request)

    def _fail_job(self, event: JobFailed) -> list[LifecycleEffect]:
        run = self._running.get(event.request)
        life = (event.instance, event.generation)
        if run is None or life not in run.lives() or (life == run.prefill and run.landed):
            return []
        failure = event.failure
        if failure.instance is None:
            failure = msgspec.structs.replace(failure, instance=event.instance)
        return self._fail(run, failure, holds_nothing=life) + self._dispatch()

    def _lose(self, event: MemberLost) -> list[LifecycleEffect]:
        life = (event.instance, event.generation)
        effects: list[LifecycleEffect] = []
        for request in self._fleet.lose(*life):
            # An ended request may still have its slot; one whose KV has landed needs P no more.
            run = self._running.get(request)
            if run is None or (run.prefill == life and run.landed):
                continue
            effects += self._fail(run, loss_of(event, run))
        return effects + self._refuse_waiting() + self._dispatch()

    def _refuse_waiting(self) -> list[LifecycleEffect]:
        """End the waiting requests that the members still here can never serve."""
        effects: list[LifecycleEffect] = []
        mesh = self._view()
        for _, arrived in self._waiting:
            if (refusal := self._policy.refusal(arrived.spec, mesh)) is not None:
                # It could be served when it came.
                is_gone = refusal.kind is FailureKind.INVALID_REQUEST
                effects += self._end_waiting(arrived, _gone("is lost or drains", refusal) if is_gone else refusal)
        return effects

    # ------------------------------------------------------------ ends

    def _forget(self, request: RequestId, *, is_answered: bool) -> list[LifecycleEffect]:
        waited = self._waiting.leave(request)
        run = self._running.get(request)
        if not waited and run is None:
            return []
        if is_answered and run is not None and run.emitted:
            self._lengths.observe(run.spec, max(1, run.emitted // run.spec.choices))
        aborts = [] if run is None else self._abort(run)
        return aborts + self._dispatch()

    def _expire(self, now: float) -> list[LifecycleEffect]:
        self._now = now
        effects: list[LifecycleEffect] = []
        for line, arrived in self._waiting:
            if arrived.spec.deadline_at <= now:
                effects += self._end_waiting(arrived, late_in_queue(line.waits_for))
        for run in [run for run in self._running.values() if run.spec.deadline_at <= now]:
            effects += self._fail(run, late_at_work(run))
        return effects + self._dispatch() if effects else effects

    def _end_waiting(self, arrived: Arrived, failure: Failure) -> list[LifecycleEffect]:
        self._waiting.leave(arrived.spec.request)
        return [Fail(arrived.spec.request, failure)]

    def _fail(self, run: Running, failure: Failure, *, holds_nothing: Life | None = None) -> list[LifecycleEffect]:
        return [Fail(run.spec.request, failure), *self._abort(run, holds_nothing=holds_nothing)]

    def _abort(self, run: Running, *, holds_nothing: Life | None = None) -> list[LifecycleEffect]:
        request = run.spec.request
        holders = [life for life in run.lives() if life != holds_nothing and self._fleet.holds(*life, request)]
        self._retire(run)
        return [Send(instance, Abort(request)) for instance, _ in holders]

    def _retire(self, run: Running) -> None:
        """Forget a request, but not its slot: that is free when P says so."""
        del self._running[run.spec.request]
        self._fleet.release(*run.decode, run.spec.request)


def _gone(what: str, refusal: Failure) -> Failure:
    """Of a request that is right, and has nobody left to serve it."""
    return Failure(FailureKind.NO_INSTANCE, f"an instance that could serve the request {what}: {refusal.message}")
