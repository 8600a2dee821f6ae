"""Decode jobs from the gateway's word to the last token."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from common.clock import Clock
from common.errors import Failure, FailureKind, GrammarRefused
from common.faults import FaultPoint, Faults
from common.ids import Generation, InstanceId, RequestId
from common.messages.control import (
    DecodeBegan,
    DecodeProgress,
    EmittedTokens,
    FromWorker,
    KVLanded,
    LinkFigures,
    LinkMeasured,
    Load,
    MeetPrefill,
    RunDecode,
    RunPrefill,
    TokensEmitted,
)
from services.decode.grammars import Grammars
from services.engine.api import (
    BlocksReserved,
    ChoiceTokens,
    DecodeJob,
    LayerReady,
    PrefillComputed,
    PrefillFailed,
    TokensSampled,
)
from services.engine.guide import Grammar
from services.engine.jobs import HeldJob, InstanceJobs, Order, RoleEvent
from services.engine.thread import EngineThread
from transfer.errors import TransferError
from transfer.sink import KVSink
from transfer.sink_session import Landed

_log = logging.getLogger(__name__)

_FAULT_TOKENS = {0: FaultPoint.DECODE_FIRST_TOKEN, 7: FaultPoint.DECODE_EIGHTH_TOKEN}
"""Reached with the token of this number sampled but not yet sent."""


@dataclass(slots=True)
class _Job(HeldJob):
    message: RunDecode
    deadline_at: float
    compiling: asyncio.Task[Grammar | Failure] | None = None
    """While its grammar is compiled; the engine does not know it yet."""
    intake: asyncio.Task[Any] | None = None


class DecodeJobs(InstanceJobs[_Job]):
    """Every decode job of this instance, between the gateway, the engine and the KV sink.

    Blocks are given back to the engine only when the sink writes to them no more.
    """

    def __init__(
        self,
        instance: InstanceId,
        engine: EngineThread,
        sink: KVSink,
        send: Callable[[FromWorker], None],
        clock: Clock,
        faults: Faults,
        grammars: Grammars | None = None,
    ) -> None:
        super().__init__("decode", instance, engine, send, clock, faults)
        self._sink = sink
        self._grammars = grammars

    def begin(self, generation: Generation) -> None:
        """See InstanceJobs; the sink speaks for this life from now on."""
        super().begin(generation)
        self._sink.rejoin(generation)

    def _on_order(self, order: Order) -> None:
        match order:
            case RunDecode():
                self._run(order)
            case MeetPrefill():
                self._tasks.start(self._meet(order, self.generation), f"meet:{order.peer}")
            case RunPrefill():
                self._log_stray(order)
            case _:
                assert_never(order)

    def _run(self, message: RunDecode) -> None:
        request = message.request
        if self._is_stale(request, None if message.ticket is None else message.ticket.decode_generation):
            return
        job = self._jobs[request] = _Job(message, self._clock.now() + message.deadline_s)
        self._faults.reach(FaultPoint.DECODE_ACCEPTED)
        if message.sampling.grammar:
            job.compiling = self._tasks.start(self._compile(message.sampling.grammar), f"grammar:{request}")
            job.compiling.add_done_callback(lambda task: self._compiled(request, job, task))
        else:
            self._engine.submit(_engine_job(message, None))

    async def _compile(self, grammar: str) -> Grammar | Failure:
        if self._grammars is None:
            return Failure(FailureKind.INVALID_REQUEST, "this instance keeps no answer within a grammar")
        try:
            return await self._grammars.compiled(grammar)
        except GrammarRefused as error:
            return Failure(FailureKind.INVALID_REQUEST, f"the grammar of this answer: {error}")

    def _compiled(self, request: RequestId, job: _Job, task: asyncio.Task[Grammar | Failure]) -> None:
        # A callback, as for the intake: it is called whatever becomes of the task.
        job.compiling = None
        if task.cancelled() or job.is_dropped:
            self._ended(request, None)
        elif (error := task.exception()) is not None:
            self._ended(request, Failure(FailureKind.ENGINE_FAILED, f"the grammar was not compiled: {error!r}"))
        elif isinstance(result := task.result(), Failure):
            self._ended(request, result)
        else:
            self._engine.submit(_engine_job(job.message, result))

    async def _meet(self, introduction: MeetPrefill, generation: Generation) -> None:
        try:
            met = await self._sink.meet(introduction.endpoints)
        except TransferError as error:
            _log.warning("no link to %s: %s", introduction.peer, error)
            return
        best = met.figures[0]
        _log.info("KV from %s comes by %s: %.2f GB/s", introduction.peer, best.scheme, best.bytes_per_s / 1e9)
        figures = tuple(LinkFigures(one.scheme, one.bytes_per_s, one.round_trip_s) for one in met.figures)
        peer = introduction.peer, introduction.peer_generation
        self._send(LinkMeasured(self._instance, generation, *peer, figures, met.failed))

    def _drop(self, request: RequestId, job: _Job) -> None:
        if job.compiling is not None:
            job.compiling.cancel()
        elif job.intake is None:
            self._engine.end(request)
        else:
            # The intake tells the engine itself, when the sink has let go of the blocks.
            job.intake.cancel()

    def _on_role_event(self, event: RoleEvent) -> None:
        match event:
            case BlocksReserved(request, blocks, held):
                self._take_in(request, blocks, held)
            case TokensSampled(items):
                self._emit(items)
            case LayerReady() | PrefillComputed() | PrefillFailed():
                _log.error("a decode job reported %s", type(event).__name__)
            case _:
                assert_never(event)

    def _take_in(self, request: RequestId, blocks: tuple[int, ...], held: int) -> None:
        job = self._jobs[request]
        if not job.is_dropped:
            job.intake = self._tasks.start(self._intake(request, job, blocks, held), f"intake:{request}")
            job.intake.add_done_callback(lambda task: self._intake_done(request, job, task))

    async def _intake(self, request: RequestId, job: _Job, blocks: tuple[int, ...], held: int) -> None:
        ticket, split = job.message.ticket, job.message.split
        assert ticket is not None
        self._faults.reach(FaultPoint.DECODE_RESERVED)
        remaining_s = max(0.0, job.deadline_at - self._clock.now())
        try:
            landed = await self._sink.take(ticket, blocks, split, remaining_s, first_token=held)
        except TransferError as error:
            job.failure = Failure(FailureKind.HANDOFF_FAILED, str(error))
            self._engine.end(request)
            return
        self._faults.reach(FaultPoint.DECODE_LANDED)
        self._send(_landed_message(self._instance, self.generation, request, landed))
        self._engine.kv_landed(request)

    def _intake_done(self, request: RequestId, job: _Job, task: asyncio.Task[Any]) -> None:
        # A callback and not a clause in _intake: a task that is cancelled before its first step runs none of its body.
        job.intake = None
        if not task.cancelled() and task.exception() is not None:
            job.failure = Failure(FailureKind.HANDOFF_FAILED, f"the intake broke: {task.exception()!r}")
        # Dropped without being cancelled: the abort came when the intake had just ended.
        if job.is_dropped or task.cancelled() or task.exception() is not None:
            self._engine.end(request)

    def _emit(self, items: tuple[ChoiceTokens, ...]) -> None:
        emitted = tuple(
            EmittedTokens(
                item.request, item.choice, item.first, item.tokens, item.finish, item.logprobs, item.prompt_logprobs
            )
            for item in items
            if not self._jobs[item.request].is_dropped
        )
        for item in emitted:
            if item.first in _FAULT_TOKENS:
                self._faults.reach(_FAULT_TOKENS[item.first])
        if emitted:
            load = self._engine.load()
            progress = DecodeProgress(load.context_tokens, load.partial_tokens)
            began = tuple(self._begun([item.request for item in emitted if item.first == 0]))
            self._send(TokensEmitted(self._instance, self.generation, emitted, progress, began))

    def _begun(self, requests: Sequence[RequestId]) -> Iterator[DecodeBegan]:
        """Of `requests`, which have just had first tokens; each once, though it may have one for each choice."""
        for request in requests:
            job = self._jobs[request]
            if job.began_at is not None:
                yield DecodeBegan(request, self._clock.now() - job.began_at)
                job.began_at = None  # once is enough

    def load(self) -> Load:
        """What this instance holds now."""
        load, transfer = super().load(), self._sink.holdings()
        return msgspec.structs.replace(
            load,
            tickets=transfer.connections,
            staging_bytes=transfer.staging_bytes,
            tasks=load.tasks + transfer.tasks,
            link_fallbacks=self._sink.fallbacks,
            clamped_elements=self._sink.clamped_elements,
        )


def _engine_job(message: RunDecode, grammar: Grammar | None) -> DecodeJob:
    return DecodeJob(
        request=message.request,
        prompt=message.prompt,
        split=message.split,
        sampling=message.sampling,
        max_tokens=message.max_tokens,
        choices=message.choices,
        stop_tokens=message.stop_tokens,
        min_tokens=message.min_tokens,
        grammar=grammar,
    )


def _landed_message(instance: InstanceId, generation: Generation, request: RequestId, landed: Landed) -> KVLanded:
    return KVLanded(
        instance=instance,
        generation=generation,
        request=request,
        payload_bytes=landed.payload_bytes,
        seconds=landed.seconds,
        backend=landed.scheme,
        casting_side=landed.casting_side,
        first_byte_s=landed.first_byte_s,
    )
