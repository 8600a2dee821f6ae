"""Decode jobs from the gateway's word to the last token."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from common.clock import Clock
from common.errors import Failure, FailureKind, GrammarRefused
from common.faults import FaultPoint, Faults
from common.ids import Generation, InstanceId, RequestId
from common.kv.prefix import PrefixNews
from common.messages.control import (
    Abort,
    DecodeBegan,
    DecodeProgress,
    Drain,
    EmittedTokens,
    FromWorker,
    HeartbeatAck,
    JobFailed,
    KVLanded,
    LinkFigures,
    LinkMeasured,
    Load,
    MeasureStep,
    MeetPrefill,
    PrefixReused,
    Rejected,
    Resume,
    RunDecode,
    RunPrefill,
    TokensEmitted,
    ToWorker,
    Welcome,
)
from common.tasks import TaskScope
from services.decode.grammars import Grammars
from services.engine.api import (
    BlocksReserved,
    ChoiceTokens,
    ComputingBegan,
    DecodeJob,
    EngineEvent,
    JobEnded,
    LayerReady,
    PrefillComputed,
    PrefillFailed,
    PrefixesChanged,
    PrefixFound,
    TokensSampled,
)
from services.engine.guide import Grammar
from services.engine.kv.prefix_journal import PrefixJournal
from services.engine.measuring.answer import answer_measure
from services.engine.thread import EngineThread
from transfer.errors import TransferError
from transfer.sink import KVSink
from transfer.sink_session import Landed

_log = logging.getLogger(__name__)

_FAULT_TOKENS = {0: FaultPoint.DECODE_FIRST_TOKEN, 7: FaultPoint.DECODE_EIGHTH_TOKEN}
"""Reached with the token of this number sampled but not yet sent."""


@dataclass(slots=True)
class _Job:
    message: RunDecode
    deadline_at: float
    compiling: asyncio.Task[Grammar | Failure] | None = None
    """While its grammar is compiled; the engine does not know it yet."""
    intake: asyncio.Task[Any] | None = None
    is_dropped: bool = False
    failure: Failure | None = None
    began_at: float | None = None
    """When it was first computed; None again once that has been told."""


class DecodeJobs:
    """Every decode job of this instance, between the gateway, the engine and the KV sink.

    Blocks are given back to the engine only when the sink writes to them no more.  All methods run on the event loop.
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
        self._instance = instance
        self._engine = engine
        self._sink = sink
        self._send = send
        self._clock = clock
        self._faults = faults
        self._grammars = grammars
        self._jobs: dict[RequestId, _Job] = {}
        self._prefixes = PrefixJournal()
        self._tasks = TaskScope("decode")
        self.generation = Generation(0)
        self.is_draining = False
        self.is_leaving = False
        # Between two lives, and after the last: what is said then was meant for a life that has ended.
        self._is_over = False
        self._emptied = asyncio.Event()

    def on_message(self, message: ToWorker) -> None:
        """What the gateway says."""
        match message:
            case RunDecode():
                self._run(message)
            case MeetPrefill():
                self._tasks.start(self._meet(message, self.generation), f"meet:{message.peer}")
            case Abort(request):
                self.abort(request)
            case Drain():
                self.is_draining = True
            case Resume():
                self.is_draining = False
            case MeasureStep():
                self._tasks.start(self._measure(message, self.generation), f"measure:{message.measure}")
            case RunPrefill() | Welcome() | HeartbeatAck() | Rejected():
                _log.error("a decode instance was sent a %s", type(message).__name__)
            case _:
                assert_never(message)

    def _run(self, message: RunDecode) -> None:
        request = message.request
        ticket = message.ticket
        is_stale = self._is_over or (ticket is not None and ticket.decode_generation != self.generation)
        if is_stale or request in self._jobs:
            _log.warning("request %s: not run: of a life that is over, or here already", request)
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

    async def _measure(self, order: MeasureStep, generation: Generation) -> None:
        self._send(await answer_measure(order, self._engine, self._instance, generation))

    def abort(self, request: RequestId) -> None:
        """Drop the job, wherever it stands; its blocks are freed once nobody writes to them."""
        if (job := self._jobs.get(request)) is None or job.is_dropped:
            return
        job.is_dropped = True
        if job.compiling is not None:
            job.compiling.cancel()
        elif job.intake is None:
            self._engine.end(request)
        else:
            # The intake tells the engine itself, when the sink has let go of the blocks.
            job.intake.cancel()

    def begin(self, generation: Generation) -> None:
        """A new life begins (the first one too)."""
        self.generation = generation
        self._is_over = False
        self._prefixes.begin()
        self._sink.rejoin(generation)

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
            case BlocksReserved(request, blocks, held):
                self._take_in(request, blocks, held)
            case PrefixFound(request, tokens):
                self._reuse(request, tokens)
            case PrefixesChanged(news):
                self._prefixes.note(news)
            case ComputingBegan(request):
                self._jobs[request].began_at = self._clock.now()
            case TokensSampled(items):
                self._emit(items)
            case JobEnded(request, failure):
                self._ended(request, failure)
            case LayerReady() | PrefillComputed() | PrefillFailed():
                _log.error("a decode job reported %s", type(event).__name__)
            case _:
                assert_never(event)

    def _reuse(self, request: RequestId, tokens: int) -> None:
        if not self._jobs[request].is_dropped:
            self._send(PrefixReused(self._instance, self.generation, request, tokens))

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
                job.began_at = None

    def _ended(self, request: RequestId, failure: Failure | None) -> None:
        job = self._jobs.pop(request)
        if not self._jobs:
            self._emptied.set()
        failure = job.failure or failure
        if failure is not None and not job.is_dropped:
            self._send(JobFailed(self._instance, self.generation, request, failure))

    def load(self) -> Load:
        """What this instance holds now."""
        engine, transfer = self._engine.load(), self._sink.holdings()
        return Load(
            waiting=engine.waiting,
            running=engine.running,
            queued_tokens=engine.queued_tokens,
            context_tokens=engine.context_tokens,
            blocks_used=engine.blocks_used,
            blocks_total=engine.blocks_total,
            blocks_kept=engine.blocks_kept,
            tickets=transfer.connections,
            staging_bytes=transfer.staging_bytes,
            tasks=len(self._tasks) + transfer.tasks,
            steps=engine.steps,
            tokens=engine.tokens,
            link_fallbacks=self._sink.fallbacks,
            clamped_elements=self._sink.clamped_elements,
            cost_factor=self._engine.cost_factor,
            draining=self.is_draining or self.is_leaving,
        )

    def prefix_news(self) -> PrefixNews | None:
        """What its blocks have come to hold since this was asked last."""
        return self._prefixes.take()

    async def close(self) -> None:
        """End the intakes and begin no more; the sink and the engine are closed by their owner."""
        self._is_over = True
        for job in self._jobs.values():
            # The engine is still there, and what it reserves now would be lent to nobody.
            job.is_dropped = True
        await self._tasks.close()


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
