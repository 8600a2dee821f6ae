"""What the jobs of an instance have in common, whatever its role: from one life in the mesh to the next."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from common.clock import Clock
from common.errors import Failure
from common.faults import Faults
from common.ids import Generation, InstanceId, RequestId
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
    PrefixesChanged,
    PrefixFound,
    TokensSampled,
)
from services.engine.kv.prefix_journal import PrefixJournal
from services.engine.measuring.answer import answer_measure
from services.engine.thread import EngineThread

_log = logging.getLogger(__name__)

Order = RunPrefill | RunDecode | MeetPrefill
"""What an instance of one role is told and one of another is not."""

RoleEvent = BlocksReserved | LayerReady | PrefillComputed | PrefillFailed | TokensSampled
"""What means something else to each role, or nothing."""


@dataclass(slots=True, kw_only=True)
class HeldJob:
    """A job from its order to the engine's last word about it."""

    is_dropped: bool = False
    """The gateway is told no more of it."""
    failure: Failure | None = None
    """What ended it here, before the engine has let go of it."""
    began_at: float | None = None
    """When it was first computed."""


J = TypeVar("J", bound=HeldJob)


class InstanceJobs(ABC, Generic[J]):
    """Every job of an instance, between the gateway and the engine. All methods run on the event loop.

    A role says what its orders and events mean, and how a job is dropped.
    """

    def __init__(
        self,
        role: str,
        instance: InstanceId,
        engine: EngineThread,
        send: Callable[[FromWorker], None],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._role = role
        self._instance = instance
        self._engine = engine
        self._send = send
        self._clock = clock
        self._faults = faults
        self._jobs: dict[RequestId, J] = {}
        self._prefixes = PrefixJournal()
        self._tasks = TaskScope(role)
        self.generation = Generation(0)
        self.is_draining = False
        self.is_leaving = False
        # Between two lives, and after the last: what is said then was meant for a life that has ended.
        self._is_over = False
        self._emptied = asyncio.Event()

    @abstractmethod
    def _on_order(self, order: Order) -> None:
        """The gateway's order, of this life or of one before."""

    @abstractmethod
    def _drop(self, request: RequestId, job: J) -> None:
        """Tell the engine to end `job`: now, or once nobody reads or writes its blocks any more."""

    @abstractmethod
    def _on_role_event(self, event: RoleEvent) -> None:
        """What the engine says and the role alone can make something of."""

    def on_message(self, message: ToWorker) -> None:
        """What the gateway says."""
        match message:
            case Abort(request):
                self.abort(request)
            case Drain():
                self.is_draining = True
            case Resume():
                self.is_draining = False
            case MeasureStep():
                self._tasks.start(self._measure(message, self.generation), f"measure:{message.measure}")
            case Welcome() | HeartbeatAck() | Rejected():
                self._log_stray(message)
            case _:
                self._on_order(message)

    def _log_stray(self, message: ToWorker) -> None:
        _log.error("a %s instance was sent a %s", self._role, type(message).__name__)

    async def _measure(self, order: MeasureStep, generation: Generation) -> None:
        self._send(await answer_measure(order, self._engine, self._instance, generation))

    def _is_stale(self, request: RequestId, generation: Generation | None) -> bool:
        """Whether not to run what was ordered for the life `generation` (None: it does not say)."""
        is_stale = self._is_over or generation not in (None, self.generation) or request in self._jobs
        if is_stale:
            _log.warning("request %s: not run: of a life that is over, or here already", request)
        return is_stale

    def abort(self, request: RequestId) -> None:
        """Drop the job, wherever it stands; its blocks are freed once nobody reads or writes them."""
        if (job := self._jobs.get(request)) is not None and not job.is_dropped:
            job.is_dropped = True
            self._drop(request, job)

    def begin(self, generation: Generation) -> None:
        """A new life begins (the first one too)."""
        self.generation = generation
        self._is_over = False
        self._prefixes.begin()

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

    async def close(self) -> None:
        """End every task and begin no more; the engine and what moves KV are closed by their owner."""
        self._is_over = True
        for job in self._jobs.values():
            # The engine is still there, and what it reserves now would be lent to nobody.
            job.is_dropped = True
        await self._tasks.close()

    def on_event(self, event: EngineEvent) -> None:
        """What the engine says."""
        match event:
            case PrefixFound(request, tokens):
                if not self._jobs[request].is_dropped:
                    self._send(PrefixReused(self._instance, self.generation, request, tokens))
            case PrefixesChanged(news):
                self._prefixes.note(news)
            case ComputingBegan(request):
                self._jobs[request].began_at = self._clock.now()
            case JobEnded(request, failure):
                self._ended(request, failure)
            case _:
                self._on_role_event(event)

    def _ended(self, request: RequestId, failure: Failure | None) -> J:
        job = self._jobs.pop(request)
        if not self._jobs:
            self._emptied.set()
        failure = job.failure or failure
        if failure is not None and not job.is_dropped:
            self._send(JobFailed(self._instance, self.generation, request, failure))
        return job

    def load(self) -> Load:
        """What this instance holds now."""
        engine = self._engine.load()
        return Load(
            waiting=engine.waiting,
            running=engine.running,
            queued_tokens=engine.queued_tokens,
            context_tokens=engine.context_tokens,
            blocks_used=engine.blocks_used,
            blocks_total=engine.blocks_total,
            blocks_kept=engine.blocks_kept,
            tasks=len(self._tasks),
            steps=engine.steps,
            tokens=engine.tokens,
            cost_factor=self._engine.cost_factor,
            draining=self.is_draining or self.is_leaving,
        )

    def prefix_news(self) -> PrefixNews | None:
        """What its blocks have come to hold since this was asked last."""
        return self._prefixes.take()
