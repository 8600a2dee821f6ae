"""A thread that does what the event loop must not, many small jobs at a time."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from common.errors import PdmeshError

_log = logging.getLogger(__name__)

T = TypeVar("T")


class LaneClosed(PdmeshError):
    """Text work was asked of a thread that is not running."""


class WorkPanicked(PdmeshError):
    """The work ended in what is no Exception; it is the cause."""


class _Job:
    def __init__(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self._work = work
        self._future = future
        self._result: Any = None
        self._error: Exception | None = None

    def perform(self) -> None:
        """On the thread. Nobody waits for a cancelled job: doing it would only delay the others."""
        if self._future.done():
            return
        try:
            self._result = self._work()
        except Exception as error:
            self._error = error
        except BaseException as error:
            # A panic in Rust, as tokenizers may have: it must not end the thread, on which all others wait.
            self._error = WorkPanicked(f"the text work ended in {error!r}")
            self._error.__cause__ = error

    def deliver(self) -> None:
        """On the event loop."""
        if self._future.done():
            return
        if self._error is not None:
            self._future.set_exception(self._error)
        else:
            self._future.set_result(self._result)


class TextThread:
    """Does jobs in the order they were asked.

    Jobs that queue up while it is busy are done in one go and come back in one wake-up of the loop. Started and
    closed once, by its owner, on the loop that asks.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; results go to `loop`."""
        if self._thread is not None:
            raise LaneClosed("a text lane can be entered once")
        self._loop = loop
        self._thread = threading.Thread(target=self._serve, args=(loop,), name=self._name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """Do `work` on the thread; its result or its error comes back.

        Cancelling drops work not begun, and the result of work under way.
        """
        if self._loop is None:
            raise LaneClosed("the text lane is not running; enter it before the server takes requests")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Job(work, future))
        return await future

    async def close(self) -> None:
        """Do what is queued, then end; nothing may be asked any more."""
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        ended: asyncio.Future[None] = loop.create_future()
        self._queue.put(_Job(lambda: None, ended))
        self._queue.put(None)
        await ended
        thread.join()

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        is_open = True
        while is_open:
            jobs, is_open = self._take()
            for job in jobs:
                job.perform()
            try:
                loop.call_soon_threadsafe(_deliver, jobs)
            except RuntimeError:
                _log.warning("%s: the event loop closed before the text lane", self._name)
                return

    def _take(self) -> tuple[list[_Job], bool]:
        """Wait for a job, then take all that are there; False with them once the end mark was among them."""
        jobs: list[_Job] = []
        job = self._queue.get()
        while job is not None:
            jobs.append(job)
            if self._queue.empty():  # nobody else takes from it
                return jobs, True
            job = self._queue.get()
        return jobs, False


def _deliver(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.deliver()
