"""Small pieces of structured waiting: wake-ups, races, and threads that a cancelled task does not leave behind."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from common.tasks import TaskScope
from transfer.errors import TransferError

T = TypeVar("T")


class Wakeup:
    """Tells all who wait that something changed; they look again.

    `wait` has no memory: look, and if there is nothing wait, without a suspension in between. Who cannot promise that
    notes `count` when looking and uses `wait_beyond`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Until the next `wake`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    async def wait_beyond(self, count: int) -> None:
        """Until there have been more wake-ups than `count`."""
        while self.count <= count:
            await self.wait()

    def wake(self) -> None:
        """Resume everybody who waits now."""
        self.count += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


async def settle(futures: Collection[asyncio.Future[Any]]) -> None:
    """Wait until all are done, whatever cancels the waiter meanwhile; then let that cancel through."""
    cancel: asyncio.CancelledError | None = None
    while pending := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        raise cancel


async def race(scope: TaskScope, name: str, *works: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run all until the first ends, end the others, and return (or raise) what the first one did.

    When it returns, raises or is cancelled nothing of any of them runs any more. Among several that end at once the
    earliest argument counts.
    """
    tasks = [scope.start(_caught(work), name) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winner = next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await settle(tasks)
    outcome: T | TransferError = winner.result()
    if isinstance(outcome, TransferError):
        raise outcome
    return outcome


async def _caught(work: Callable[[], Coroutine[Any, Any, T]]) -> T | TransferError:
    """A failed hand-off is a result here: a task scope logs exceptions as bugs."""
    try:
        return await work()
    except TransferError as error:
        return error


class Worker:
    """A thread for copies. Work that has begun cannot be stopped, so `run` never leaves before it has ended."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work()` in the thread. Cancelled, it drops work that has not begun and waits for what has."""
        job: Future[T] = self._executor.submit(work)
        future = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if job.cancel():
                future.cancel()
                raise
            try:
                await settle([future])
            finally:
                # Asked for, so that a failure of work that nobody waits for any more is not reported as forgotten.
                future.exception()
            raise

    def close(self) -> None:
        """End the thread; call it when nothing runs any more."""
        self._executor.shutdown(wait=True)
