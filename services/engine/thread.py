"""The engine on its own thread: the event loop never runs a forward, the forward never waits for the loop."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from common.clock import Clock
from common.costs.models import InstanceCosts
from common.costs.step import Step
from common.errors import PdmeshError
from common.ids import RequestId
from services.engine.api import EngineEvent, EngineLoad, Job
from services.engine.core import EngineCore
from services.engine.measuring.measure import MeasurementRefused
from services.engine.measuring.slowdown import Slowdown
from services.engine.runner import Runner
from services.scheduling.continuous import BatchLimits
from services.scheduling.profiles.correction import Correction

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
        prefix_cache: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._build = build
        self._limits = limits
        self._on_event = on_event
        self._clock = clock
        self._prefix_cache = prefix_cache
        self._slowdown = Slowdown(slowdown, clock, sleep)
        self._costs: InstanceCosts | None = None
        self._correction = Correction()
        self._is_measuring = False
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

    def use_costs(self, costs: InstanceCosts) -> None:
        """From now on compare every step with what it should take by `costs`: see `cost_factor`."""

        def use(_: EngineCore) -> None:
            self._costs, self._correction = costs, Correction()

        self._inbox.put(use)

    @property
    def cost_factor(self) -> float:
        """Step times lately over those predicted; 1 where no costs are known."""
        return self._correction.factor

    async def measure(self, step: Step, repeats: int) -> tuple[float, ...]:
        """The seconds of each of `repeats` runs of `step`, the emulated slowdown included.

        Runs between two steps. Raises MeasurementRefused where a job is here or comes meanwhile, or where the step
        does not fit; or what broke the engine.
        """
        if self._is_measuring:
            # Each would interrupt the other, and neither come to an end.
            raise MeasurementRefused("the instance measures for somebody else; measure again when it has ended")
        self._is_measuring = True
        try:
            return await self._ask(lambda core: core.measure(step, repeats, self._slowdown.run, self._has_commands))
        finally:
            self._is_measuring = False

    async def check_integrity(self) -> None:
        """Raise BlockError unless every block is accounted for, or what broke the engine; runs between two steps."""
        await self._ask(lambda core: core.check_integrity())

    async def _ask(self, question: Callable[[EngineCore], T]) -> T:
        done: asyncio.Future[T] = self._loop.create_future()

        def answer(core: EngineCore) -> None:
            try:
                result = question(core)
            except PdmeshError as error:
                self._to_loop(_fail, done, error)
            else:
                self._to_loop(_resolve, done, result)

        self._inbox.put(answer)
        waiters: set[asyncio.Future[Any]] = {done, self.failed}
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            self.failed.result()
        return done.result()

    # ------------------------------------------------------------ the engine's thread

    def _main(self) -> None:
        told: asyncio.Future[Any] = self._ready
        try:
            runner = self._build()
            core = EngineCore(runner, self._limits, self._emit, prefix_cache=self._prefix_cache)
            self._load = core.load()
            self._to_loop(_resolve, self._ready, runner)
            told = self.failed
            while self._take_commands(core):
                self._step(core)
        except BaseException as error:  # a panic of a library in Rust is no Exception, and would end the thread unheard
            if told is self.failed:
                _log.exception("the engine core broke")
            self._to_loop(_fail, told, _raisable(error))

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
        seconds = self._slowdown.run(lambda: self._compute(core))
        if not self._is_stuck:
            self._observe(core.computed, seconds)
        self._load = core.load()

    def _compute(self, core: EngineCore) -> None:
        self._is_stuck = not core.step()

    def _observe(self, step: Step | None, seconds: float) -> None:
        if step is not None and self._costs is not None:
            self._correction = self._correction.observe(step.seconds(self._costs), seconds)

    def _has_commands(self) -> bool:
        return not self._inbox.empty()

    def _emit(self, event: EngineEvent) -> None:
        self._slowdown.catch_up()
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


def _raisable(error: BaseException) -> Exception:
    """`error`, or one that says so: others end an event loop, or cannot be told by a future."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    told = RuntimeError(f"the engine's thread ended: {error!r}")
    told.__cause__ = error
    return told
