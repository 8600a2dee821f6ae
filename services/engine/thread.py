"""The engine on its own thread: the event loop never runs a forward, the forward never waits for the loop."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from common.clock import Clock
from common.errors import PdmeshError
from common.ids import RequestId
from services.engine.api import EngineEvent, EngineLoad, Job
from services.engine.core import EngineCore
from services.engine.runner import Runner
from services.scheduling.continuous import BatchLimits

_log = logging.getLogger(__name__)

Command = Callable[[EngineCore], None]
T = TypeVar("T")


class EngineThread:
    """Runs an EngineCore. Every method is called on the event loop's thread and returns at once, but start and stop.

    Events come to `on_event` on the event loop, in order.  `build` makes the runner on the engine's own thread (it may
    take seconds to load a model).  With `slowdown` k each step takes k times as long as it really did: an emulation.
    If the core itself or `on_event` breaks (a fault in this program, by which a job may be lost), `failed` is set and
    the process must end.
    """

    def __init__(
        self,
        build: Callable[[], Runner],
        limits: BatchLimits,
        on_event: Callable[[EngineEvent], None],
        clock: Clock,
        *,
        slowdown: float = 1.0,
    ) -> None:
        self._build = build
        self._limits = limits
        self._on_event = on_event
        self._clock = clock
        self._slowdown = slowdown
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._load = EngineLoad(0, 0, 0, 0, 0, 0, 0)
        # True after a step that could compute nothing (no room, say): only a command can change that.
        self._is_stuck = False

    async def start(self) -> Runner:
        """Start the thread and wait until the model is loaded; raises what loading raised."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Runner] = self._loop.create_future()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        return await self._ready

    async def stop(self) -> None:
        """End the thread after the step in progress. Jobs still there are forgotten without an event."""
        self._inbox.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def submit(self, job: Job) -> None:
        """See EngineCore.submit."""
        self._inbox.put(lambda core: core.submit(job))

    def kv_landed(self, request: RequestId) -> None:
        """See EngineCore.kv_landed."""
        self._inbox.put(lambda core: core.kv_landed(request))

    def end(self, request: RequestId) -> None:
        """See EngineCore.end."""
        self._inbox.put(lambda core: core.end(request))

    def load(self) -> EngineLoad:
        """What the engine held after its last step or command."""
        return self._load

    async def check_integrity(self) -> None:
        """Raise BlockError unless every block is accounted for, or what broke the engine; runs between two steps."""
        done: asyncio.Future[None] = self._loop.create_future()

        def check(core: EngineCore) -> None:
            try:
                core.check_integrity()
            except PdmeshError as error:
                self._to_loop(_fail, done, error)
            else:
                self._to_loop(_resolve, done, None)

        self._inbox.put(check)
        await asyncio.wait({done, self.failed}, return_when=asyncio.FIRST_COMPLETED)
        (done if done.done() else self.failed).result()

    # ------------------------------------------------------------ the engine's thread

    def _main(self) -> None:
        try:
            runner = self._build()
        except Exception as error:  # handed to start(), which raises it where somebody can act
            self._to_loop(_fail, self._ready, error)
            return
        self._to_loop(_resolve, self._ready, runner)
        core = EngineCore(runner, self._limits, self._emit)
        self._load = core.load()
        try:
            while self._take_commands(core):
                self._step(core)
        except Exception as error:
            _log.exception("the engine core broke")
            self._to_loop(_fail, self.failed, error)

    def _take_commands(self, core: EngineCore) -> bool:
        """Perform what is in the inbox, waiting only while there is nothing to compute; False at the end."""
        block = not core.has_work() or self._is_stuck
        while True:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                break
            if command is None:
                return False
            command(core)
            block = False
        self._load = core.load()
        return True

    def _step(self, core: EngineCore) -> None:
        started = self._clock.now()
        self._is_stuck = not core.step()
        if self._slowdown > 1.0 and not self._is_stuck:
            time.sleep((self._slowdown - 1.0) * (self._clock.now() - started))
        self._load = core.load()

    def _emit(self, event: EngineEvent) -> None:
        self._to_loop(self._deliver, event)

    def _deliver(self, event: EngineEvent) -> None:
        try:
            self._on_event(event)
        except Exception as error:
            _log.exception("an event of the engine could not be handled: %s", type(event).__name__)
            _fail(self.failed, error)

    def _to_loop(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop closed while a step was running: the process is ending and nobody listens any more.
            _log.debug("an event came after the event loop had closed")


def _resolve(future: asyncio.Future[T], result: T) -> None:
    """Unless who waited for it has given up."""
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    """Unless it has ended otherwise."""
    if not future.done():
        future.set_exception(error)
