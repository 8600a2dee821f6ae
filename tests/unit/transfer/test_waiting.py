import asyncio
import threading

import pytest
import torch

from common.tasks import TaskScope
from transfer.backends.base import Buffer
from transfer.backends.inproc import InprocBackend
from transfer.errors import PeerLost
from transfer.limits import TransferLimits
from transfer.pinning import HostPinning
from transfer.staging import StagingPool
from transfer.testing import eventually
from transfer.waiting import Wakeup, Worker, race


async def forever(log: list[str]) -> str:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        log.append("ended")
    return "never"


async def test_race_ends_the_losers_before_it_returns() -> None:
    scope, log = TaskScope("test"), list[str]()

    async def wins() -> str:
        await asyncio.sleep(0)
        return "won"

    assert await race(scope, "race", lambda: forever(log), wins) == "won"
    assert log == ["ended"]
    assert len(scope) == 0


async def test_race_raises_what_the_winner_raised() -> None:
    scope, log = TaskScope("test"), list[str]()

    async def fails() -> str:
        raise PeerLost("gone")

    with pytest.raises(PeerLost, match="gone"):
        await race(scope, "race", lambda: forever(log), fails)


async def test_a_race_cancelled_twice_still_leaves_nothing() -> None:
    scope, log = TaskScope("test"), list[str]()
    work = asyncio.get_running_loop().create_task(race(scope, "race", lambda: forever(log), lambda: forever(log)))
    await asyncio.sleep(0.01)
    work.cancel()
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert log == ["ended", "ended"]


async def test_a_race_cancelled_before_it_began() -> None:
    scope, log = TaskScope("test"), list[str]()
    work = asyncio.get_running_loop().create_task(race(scope, "race", lambda: forever(log)))
    asyncio.get_running_loop().call_soon(work.cancel)
    with pytest.raises(asyncio.CancelledError):
        await work
    assert len(scope) == 0


async def test_a_cancelled_worker_call_waits_for_its_thread() -> None:
    worker, began, go, log = Worker("test"), threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        began.set()
        go.wait()
        log.append("first")

    calls = [asyncio.get_running_loop().create_task(worker.run(work)) for work in (first, lambda: log.append("second"))]
    await eventually(began.is_set)
    for _ in range(3):
        for call in calls:
            call.cancel()
        await asyncio.sleep(0.005)
    assert [call.done() for call in calls] == [False, True], "what had begun runs on, what had not is dropped"
    go.set()
    await asyncio.wait(calls)
    assert [call.cancelled() for call in calls] == [True, True]
    assert log == ["first"]
    worker.close()


async def test_a_worker_call_raises_what_the_work_raised() -> None:
    worker = Worker("test")
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    worker.close()


async def test_wait_beyond_does_not_miss_what_came_before() -> None:
    wakeup = Wakeup()
    seen = wakeup.count
    wakeup.wake()
    async with asyncio.timeout(1):
        await wakeup.wait_beyond(seen)


async def test_the_pool_is_bounded_fair_and_reused() -> None:
    pool, order = StagingPool(InprocBackend(), 10, 45), list[str]()
    loop = asyncio.get_running_loop()

    async def borrow(name: str, count: int) -> None:
        async with pool.lend(count):
            order.append(name)
            assert pool.bytes_in_use <= 40

    async with pool.lend(3) as loan:
        assert [len(buffer.view) for buffer in loan.buffers] == [10, 10, 10]
        assert pool.bytes_in_use == 30
        first = set(loan.buffers)
        wide = loop.create_task(borrow("wide", 2))
        narrow = loop.create_task(borrow("narrow", 1))
        cancelled = loop.create_task(borrow("cancelled", 4))
        await asyncio.sleep(0.01)
        assert order == [], "a small request does not overtake one that waits"
        cancelled.cancel()
    await asyncio.gather(wide, narrow)
    assert order == ["wide", "narrow"]
    assert pool.bytes_in_use == 0
    async with pool.lend(4) as loan:
        assert first <= set(loan.buffers)
    with pytest.raises(ValueError, match="the pool has 4"):
        async with pool.lend(5):
            pass


class _Counting(InprocBackend):
    """Keeps what it was given back."""

    def __init__(self) -> None:
        super().__init__()
        self.freed: list[Buffer] = []

    def free(self, buffer: Buffer) -> None:
        self.freed.append(buffer)


async def test_spoiled_buffers_are_given_back_and_not_lent_again() -> None:
    backend = _Counting()
    pool = StagingPool(backend, 10, 40)
    async with pool.lend(2) as spoiled:
        spoiled.is_spoiled = True
    assert backend.freed == [*spoiled.buffers]
    async with pool.lend(2) as fresh:
        assert not set(fresh.buffers) & set(spoiled.buffers)
    pool.close()
    assert set(backend.freed) == {*spoiled.buffers, *fresh.buffers}


class _Runtime:
    """A GPU's runtime that remembers what is locked."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.locked: dict[int, int] = {}

    def register(self, address: int, num_bytes: int, flags: int) -> int:
        if self.answer == 0:
            assert address not in self.locked
            self.locked[address] = num_bytes
        return self.answer

    def unregister(self, address: int) -> int:
        del self.locked[address]
        return 0


async def test_buffers_for_a_gpu_are_pinned_once_and_unpinned_before_they_go() -> None:
    runtime = _Runtime()
    pool = StagingPool(InprocBackend(), 10, 40, HostPinning(runtime.register, runtime.unregister))
    for _ in range(3):
        async with pool.lend(2):
            assert sorted(runtime.locked.values()) == [10, 10]
    async with pool.lend(1) as loan:
        loan.is_spoiled = True
    assert list(runtime.locked.values()) == [10]
    pool.close()
    assert not runtime.locked


async def test_what_cannot_be_pinned_is_said_once_and_used(caplog: pytest.LogCaptureFixture) -> None:
    runtime = _Runtime(answer=2)
    pool = StagingPool(InprocBackend(), 10, 40, HostPinning(runtime.register, runtime.unregister))
    async with pool.lend(3):
        pass
    pool.close()
    assert caplog.text.count("cannot be page-locked") == 1


def test_host_memory_needs_no_pinning() -> None:
    assert HostPinning.for_device(torch.device("cpu")) is None


def test_limits_must_have_room_for_one_hand_off() -> None:
    with pytest.raises(ValueError, match="max_staging_bytes"):
        TransferLimits(segment_bytes=1 << 20, landing_zones=8, max_staging_bytes=1 << 20)


@pytest.mark.parametrize(("payload_bytes", "zones"), [(1, 2), (100, 2), (101, 3), (200, 3), (201, 4), (10**6, 4)])
def test_a_small_hand_off_gets_few_zones(payload_bytes: int, zones: int) -> None:
    limits = TransferLimits(segment_bytes=100, landing_zones=4, max_staging_bytes=1000)
    assert limits.zones_for(payload_bytes) == zones
    assert TransferLimits(segment_bytes=100, landing_zones=1, max_staging_bytes=1000).zones_for(payload_bytes) == 1
