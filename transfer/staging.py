"""Staging memory: buffers of one size, bounded in number, lent to hand-offs and used again."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from transfer.backends.base import Backend, Buffer
from transfer.pinning import HostPinning
from transfer.waiting import Wakeup


@dataclass
class Loan:
    """Buffers lent for a while."""

    buffers: tuple[Buffer, ...]
    is_spoiled: bool = False
    """Set it where somebody might write the buffers later: they are then not lent again."""


class StagingPool:
    """Lends buffers of one backend. Who finds too few free waits, in order of arrival; nobody holds some while waiting
    for more.

    A buffer is made when first needed and kept for the next hand-off, so its pages are touched once, and pinned once
    where the cache is on a GPU.
    """

    def __init__(self, backend: Backend, buffer_bytes: int, max_bytes: int, pinning: HostPinning | None = None) -> None:
        self._backend = backend
        self._pinning = pinning
        self._buffer_bytes = buffer_bytes
        self._max_buffers = max_bytes // buffer_bytes
        self._free: list[Buffer] = []
        self._lent = 0
        self._queue: deque[object] = deque()
        self._changed = Wakeup()

    @property
    def bytes_in_use(self) -> int:
        """Bytes lent now."""
        return self._lent * self._buffer_bytes

    @asynccontextmanager
    async def lend(self, count: int) -> AsyncIterator[Loan]:
        """`count` buffers for the time of the block; cancel-safe. Their content is left over from others."""
        if count > self._max_buffers:
            raise ValueError(f"{count} staging buffers asked for; the pool has {self._max_buffers}")
        await self._wait_for(count)
        buffers: list[Buffer] = []
        loan = None
        try:
            for _ in range(count):
                buffers.append(self._free.pop() if self._free else self._make())
            loan = Loan(tuple(buffers))
            yield loan
        finally:
            self._lent -= count
            if loan is not None and loan.is_spoiled:
                self._free_all(buffers)
            else:
                self._free.extend(buffers)
            self._changed.wake()

    def close(self) -> None:
        """Give back what is kept."""
        self._free_all(self._free)
        self._free = []

    def _make(self) -> Buffer:
        buffer = self._backend.allocate(self._buffer_bytes)
        if self._pinning is not None:
            self._pinning.pin(buffer)
        return buffer

    def _free_all(self, buffers: list[Buffer]) -> None:
        for buffer in buffers:
            if self._pinning is not None:
                self._pinning.unpin(buffer)
            self._backend.free(buffer)

    async def _wait_for(self, count: int) -> None:
        turn = object()
        self._queue.append(turn)
        try:
            while self._queue[0] is not turn or self._lent + count > self._max_buffers:
                await self._changed.wait()
            self._lent += count
        finally:
            self._queue.remove(turn)
            self._changed.wake()
