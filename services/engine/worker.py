"""An engine as a member of a mesh: joins, serves until told to stop, drains, leaves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from common.bus.client import BusClient
from common.bus.codecs import from_worker_codec, to_worker_codec
from common.bus.drops import Drops
from common.bus.keys import KeyReader
from common.bus.member import MembershipClient, Registration
from common.clock import Clock
from common.ids import Generation
from common.kv.prefix import PrefixNews
from common.loop_lag import LoopLag
from common.messages.control import FromWorker, Load, Register, ToWorker
from common.tasks import TaskScope

_log = logging.getLogger(__name__)


class Jobs(Protocol):
    """The jobs of one instance, whatever its role. All methods are called on the event loop."""

    is_leaving: bool

    def on_message(self, message: ToWorker) -> None:
        """RunPrefill, RunDecode, Abort, Drain or Resume."""
        ...

    def begin(self, generation: Generation) -> None:
        """A new life begins."""
        ...

    async def drop_all(self) -> None:
        """The life is over: take no more until the next `begin`; ends when nothing is held."""
        ...

    async def until_idle(self) -> None:
        """Ends when no job is left."""
        ...

    def load(self) -> Load:
        """What is held now."""
        ...

    def prefix_news(self) -> PrefixNews | None:
        """What its blocks have come to hold since this was asked last, or since the life began."""
        ...


class Worker:
    """Keeps `jobs` a member of the mesh whose gateway listens at `control`.

    `serve` ends after `stop` is set, when every job has ended (or after `grace_s`) and the gateway has been told; it
    raises what `broken` raises (the engine's own end), MembershipRejected, or ConfigError for keys that cannot be used,
    while it drains too.
    """

    def __init__(
        self,
        jobs: Jobs,
        describe: Callable[[Generation], Register],
        control: str,
        draw_generation: Callable[[], Generation],
        clock: Clock,
        *,
        keys: KeyReader = lambda: None,
        grace_s: float = 20.0,
    ) -> None:
        self._jobs = jobs
        self._describe = describe
        self._control = control
        self._grace_s = grace_s
        self._lag = LoopLag(clock)
        self._member = MembershipClient(
            lambda: BusClient(control, to_worker_codec(), from_worker_codec(), drops=Drops(clock), keys=keys()),
            Registration(
                draw_generation=draw_generation,
                register=self._register,
                load=self._load,
                prefixes=jobs.prefix_news,
                on_message=jobs.on_message,
                on_lost=self._lost,
            ),
            clock,
        )

    def send(self, message: FromWorker) -> None:
        """Send to the gateway. What cannot be sent is not needed: the membership ends with the connection."""
        self._member.send(message)

    def _register(self, generation: Generation) -> Register:
        self._jobs.begin(generation)
        return self._describe(generation)

    def _load(self) -> Load:
        lag = self._lag.figures()
        return msgspec.structs.replace(self._jobs.load(), lag_p99_s=lag.p99_s, lag_max_s=lag.max_s)

    async def _lost(self, reason: str) -> None:
        load = self._jobs.load()
        if held := load.waiting + load.running:
            _log.warning("dropping %d requests: %s", held, reason)
        await self._jobs.drop_all()

    async def serve(self, stop: asyncio.Event, broken: Awaitable[None]) -> None:
        """Be a member until `stop`."""
        _log.info("ready to join the mesh at %s", self._control)
        tasks = TaskScope("worker")
        self._lag.start()
        try:
            pending = {tasks.start(self._member.run(), "member"), tasks.start(self._leave_after(stop), "leave")}
            failed = asyncio.ensure_future(broken)
            while pending:
                # A broken engine ends no job any more, so that draining would never end.
                done, _ = await asyncio.wait({*pending, failed}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                pending -= done
        finally:
            self._lag.stop()
            await tasks.close()

    async def _leave_after(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._jobs.is_leaving = True
        try:
            await asyncio.wait_for(self._jobs.until_idle(), self._grace_s)
        except TimeoutError:
            pass
        await self._member.leave()
        await self._jobs.drop_all()
