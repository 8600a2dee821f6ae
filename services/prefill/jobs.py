"""Prefill jobs from the gateway's word to the last block freed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import msgspec

from common.clock import Clock
from common.errors import Failure, FailureKind
from common.faults import FaultPoint, Faults
from common.ids import Generation, InstanceId, RequestId
from common.kv.ownership import Acknowledged, Expired, OfferEnd, TakerFailed, Withdrawn
from common.messages.control import FromWorker, Load, MeetPrefill, PrefillReleased, PrefillTimes, RunDecode, RunPrefill
from services.engine.api import BlocksReserved, LayerReady, PrefillComputed, PrefillFailed, PrefillJob, TokensSampled
from services.engine.jobs import HeldJob, InstanceJobs, Order, RoleEvent
from services.engine.thread import EngineThread
from transfer.errors import TransferError
from transfer.offer import Offer
from transfer.source import KVSource

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job(HeldJob):
    message: RunPrefill
    accepted_at: float
    offer: Offer | None = None
    computed_at: float | None = None

    @property
    def deadline_at(self) -> float:
        return self.accepted_at + self.message.deadline_s

    def times(self, now: float) -> PrefillTimes | None:
        """As they are told when the job ends, at `now`."""
        if self.computed_at is None:
            return None
        # Computed without a step: its KV was all there.
        began_at = self.computed_at if self.began_at is None else self.began_at
        return PrefillTimes(began_at - self.accepted_at, self.computed_at - began_at, now - self.computed_at)


class PrefillJobs(InstanceJobs[_Job]):
    """Every prefill job of this instance, between the gateway, the engine and the KV source.

    A job ends in this order: its offer (nothing reads the blocks any more), then the engine's hold on the blocks,
    then the word to the gateway.
    """

    def __init__(
        self,
        instance: InstanceId,
        engine: EngineThread,
        source: KVSource,
        send: Callable[[FromWorker], None],
        clock: Clock,
        faults: Faults,
    ) -> None:
        super().__init__("prefill", instance, engine, send, clock, faults)
        self._source = source

    def begin(self, generation: Generation) -> None:
        """See InstanceJobs; the tickets of the past are refused."""
        super().begin(generation)
        self._source.refuse_all(generation)

    def _on_order(self, order: Order) -> None:
        match order:
            case RunPrefill():
                self._run(order)
            case RunDecode() | MeetPrefill():
                self._log_stray(order)
            case _:
                assert_never(order)

    def _run(self, message: RunPrefill) -> None:
        request = message.request
        if self._is_stale(request, message.ticket.prefill_generation):
            return
        self._jobs[request] = _Job(message, self._clock.now())
        self._faults.reach(FaultPoint.PREFILL_ACCEPTED)
        self._engine.submit(PrefillJob(request, message.prompt))

    def _drop(self, request: RequestId, job: _Job) -> None:
        if job.offer is None:
            self._engine.end(request)
        else:
            job.offer.withdraw("the request was aborted")

    def _on_role_event(self, event: RoleEvent) -> None:
        match event:
            case BlocksReserved(request, blocks):
                self._offer(request, blocks)
            case LayerReady(request, layer, token_stop):
                if (job := self._jobs.get(request)) is not None and job.offer is not None:
                    job.offer.layer_ready(layer, token_stop)
                self._faults.reach(FaultPoint.PREFILL_FIRST_LAYER)
            case PrefillComputed(request):
                self._jobs[request].computed_at = self._clock.now()
                self._faults.reach(FaultPoint.PREFILL_COMPUTED)
                _log.debug("request %s: prefill computed", request)
            case PrefillFailed(request, failure):
                self._fail(request, failure)
            case TokensSampled():
                _log.error("a prefill job sampled tokens")
            case _:
                assert_never(event)

    def _offer(self, request: RequestId, blocks: tuple[int, ...]) -> None:
        job = self._jobs[request]
        if job.is_dropped:
            # The engine has been told to end it already: these blocks are as good as freed.
            return
        self._faults.reach(FaultPoint.PREFILL_RESERVED)
        remaining_s = max(0.0, job.deadline_at - self._clock.now())
        try:
            job.offer = self._source.offer(job.message.ticket, blocks, len(job.message.prompt), remaining_s)
        except (TransferError, ValueError) as error:
            # Nobody was offered the blocks, so nobody reads them.
            job.failure = Failure(FailureKind.HANDOFF_FAILED, f"the KV cannot be offered: {error}")
            self._engine.end(request)
            return
        self._tasks.start(self._until_released(request, job.offer), f"offer:{request}")

    async def _until_released(self, request: RequestId, offer: Offer) -> None:
        _log_end(request, await offer.ended())
        self._faults.reach(FaultPoint.PREFILL_RELEASED)
        self._engine.end(request)

    def _fail(self, request: RequestId, failure: Failure) -> None:
        job = self._jobs[request]
        job.failure = failure
        if job.offer is not None:
            job.offer.withdraw(failure.message)

    def _ended(self, request: RequestId, failure: Failure | None) -> _Job:
        job = super()._ended(request, failure)
        times = job.times(self._clock.now())
        self._send(PrefillReleased(self._instance, self.generation, request, times))
        return job

    def load(self) -> Load:
        """What this instance holds now."""
        load, transfer = super().load(), self._source.holdings()
        return msgspec.structs.replace(
            load,
            tickets=transfer.offers + transfer.parked,
            staging_bytes=transfer.staging_bytes,
            tasks=load.tasks + transfer.tasks,
            clamped_elements=self._source.clamped_elements,
        )


def _log_end(request: RequestId, end: OfferEnd) -> None:
    match end:
        case Acknowledged(payload_bytes):
            _log.debug("request %s: KV taken over, %d bytes", request, payload_bytes)
        case Expired():
            _log.warning("request %s: nobody took its KV in time", request)
        case Withdrawn(reason):
            _log.info("request %s: KV withdrawn: %s", request, reason)
        case TakerFailed(reason):
            _log.warning("request %s: the taker failed: %s", request, reason)
        case _:
            assert_never(end)
