"""Prefill jobs from the gateway's word to the last block freed."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from common.clock import Clock
from common.errors import Failure, FailureKind
from common.faults import FaultPoint, Faults
from common.ids import Generation, InstanceId, RequestId
from common.kv.ownership import Acknowledged, Expired, OfferEnd, TakerFailed, Withdrawn
from common.kv.prefix import PrefixNews
from common.messages.control import (
    Abort,
    Drain,
    FromWorker,
    HeartbeatAck,
    JobFailed,
    Load,
    MeasureStep,
    MeetPrefill,
    PrefillReleased,
    PrefillTimes,
    PrefixReused,
    Rejected,
    Resume,
    RunDecode,
    RunPrefill,
    ToWorker,
    Welcome,
)
from common.tasks import TaskScope
from services.engine.api import (
    BlocksReserved,
    ComputingBegan,
    EngineEvent,
    JobEnded,
    LayerReady,
    PrefillComputed,
    PrefillFailed,
    PrefillJob,
    PrefixesChanged,
    PrefixFound,
    TokensSampled,
)
from services.engine.kv.prefix_journal import PrefixJournal
from services.engine.measuring.answer import answer_measure
from services.engine.thread import EngineThread
from transfer.errors import TransferError
from transfer.offer import Offer
from transfer.source import KVSource

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    message: RunPrefill
    accepted_at: float
    offer: Offer | None = None
    is_dropped: bool = False
    failure: Failure | None = None
    began_at: float | None = None
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


class PrefillJobs:
    """Every prefill job of this instance, between the gateway, the engine and the KV source.

    A job ends in this order: its offer (nothing reads the blocks any more), then the engine's hold on the blocks,
    then the word to the gateway.  All methods run on the event loop.
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
        self._instance = instance
        self._engine = engine
        self._source = source
        self._send = send
        self._clock = clock
        self._faults = faults
        self._jobs: dict[RequestId, _Job] = {}
        self._prefixes = PrefixJournal()
        self._tasks = TaskScope("prefill")
        self.generation = Generation(0)
        self.is_draining = False
        self.is_leaving = False
        # Between two lives, and after the last: what is said then was meant for a life that has ended.
        self._is_over = False
        self._emptied = asyncio.Event()

    def on_message(self, message: ToWorker) -> None:
        """What the gateway says."""
        match message:
            case RunPrefill():
                self._run(message)
            case Abort(request):
                self.abort(request)
            case Drain():
                self.is_draining = True
            case Resume():
                self.is_draining = False
            case MeasureStep():
                self._tasks.start(self._measure(message, self.generation), f"measure:{message.measure}")
            case RunDecode() | MeetPrefill() | Welcome() | HeartbeatAck() | Rejected():
                _log.error("a prefill instance was sent a %s", type(message).__name__)
            case _:
                assert_never(message)

    def _run(self, message: RunPrefill) -> None:
        request = message.request
        is_stale = self._is_over or message.ticket.prefill_generation != self.generation
        if is_stale or request in self._jobs:
            _log.warning("request %s: not run: of a life that is over, or here already", request)
            return
        self._jobs[request] = _Job(message, self._clock.now())
        self._faults.reach(FaultPoint.PREFILL_ACCEPTED)
        self._engine.submit(PrefillJob(request, message.prompt))

    async def _measure(self, order: MeasureStep, generation: Generation) -> None:
        self._send(await answer_measure(order, self._engine, self._instance, generation))

    def abort(self, request: RequestId) -> None:
        """Drop the job, wherever it stands; its blocks are freed once nobody reads them."""
        if (job := self._jobs.get(request)) is None or job.is_dropped:
            return
        job.is_dropped = True
        if job.offer is None:
            self._engine.end(request)
        else:
            job.offer.withdraw("the request was aborted")

    def begin(self, generation: Generation) -> None:
        """A new life begins (the first one too): the tickets of the past are refused."""
        self.generation = generation
        self._is_over = False
        self._prefixes.begin()
        self._source.refuse_all(generation)

    async def drop_all(self) -> None:
        """The life is over: abort every job and run no more; ends when nothing of any is held."""
        self._is_over = True
        for request in list(self._jobs):
            self.abort(request)
        await self.until_idle()

    async def until_idle(self) -> None:
        """Ends when no job is left."""
        while self._jobs:
            self._emptied.clear()
            await self._emptied.wait()

    def on_event(self, event: EngineEvent) -> None:
        """What the engine says."""
        match event:
            case BlocksReserved(request, blocks):
                self._offer(request, blocks)
            case PrefixFound(request, tokens):
                self._reuse(request, tokens)
            case PrefixesChanged(news):
                self._prefixes.note(news)
            case LayerReady(request, layer, token_stop):
                if (job := self._jobs.get(request)) is not None and job.offer is not None:
                    job.offer.layer_ready(layer, token_stop)
                self._faults.reach(FaultPoint.PREFILL_FIRST_LAYER)
            case ComputingBegan(request):
                self._jobs[request].began_at = self._clock.now()
            case PrefillComputed(request):
                self._jobs[request].computed_at = self._clock.now()
                self._faults.reach(FaultPoint.PREFILL_COMPUTED)
                _log.debug("request %s: prefill computed", request)
            case PrefillFailed(request, failure):
                self._fail(request, failure)
            case JobEnded(request, failure):
                self._ended(request, failure)
            case TokensSampled():
                _log.error("a prefill job sampled tokens")
            case _:
                assert_never(event)

    def _reuse(self, request: RequestId, tokens: int) -> None:
        if not self._jobs[request].is_dropped:
            self._send(PrefixReused(self._instance, self.generation, request, tokens))

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

    def _ended(self, request: RequestId, failure: Failure | None) -> None:
        job = self._jobs.pop(request)
        if not self._jobs:
            self._emptied.set()
        failure = failure or job.failure
        if failure is not None and not job.is_dropped:
            self._send(JobFailed(self._instance, self.generation, request, failure))
        times = job.times(self._clock.now())
        self._send(PrefillReleased(self._instance, self.generation, request, times))

    def load(self) -> Load:
        """What this instance holds now."""
        engine, transfer = self._engine.load(), self._source.holdings()
        return Load(
            waiting=engine.waiting,
            running=engine.running,
            queued_tokens=engine.queued_tokens,
            context_tokens=engine.context_tokens,
            blocks_used=engine.blocks_used,
            blocks_total=engine.blocks_total,
            blocks_kept=engine.blocks_kept,
            tickets=transfer.offers + transfer.parked,
            staging_bytes=transfer.staging_bytes,
            tasks=len(self._tasks) + transfer.tasks,
            steps=engine.steps,
            tokens=engine.tokens,
            clamped_elements=self._source.clamped_elements,
            cost_factor=self._engine.cost_factor,
            draining=self.is_draining or self.is_leaving,
        )

    def prefix_news(self) -> PrefixNews | None:
        """What its blocks have come to hold since this was asked last."""
        return self._prefixes.take()

    async def close(self) -> None:
        """End the watchers and begin no more; the source and the engine are closed by their owner."""
        self._is_over = True
        for job in self._jobs.values():
            # The engine is still there, and what it reserves now would be lent to nobody.
            job.is_dropped = True
        await self._tasks.close()


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
