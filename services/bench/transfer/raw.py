"""Moves bytes that are no KV: the yardsticks, and other people's libraries."""

import asyncio
from collections.abc import Callable, Mapping

import numpy as np

from common.clock import Clock
from services.bench.transfer.cases import MEMCPY, RawCase
from services.bench.transfer.giver_process import GiverProcess
from services.bench.transfer.peers.base import Peer, RawTaker
from services.bench.transfer.taker import Taken

_ANSWER_S = 30.0


class RawMover:
    """Two buffers of this process, one of the giver's, and the raw peers that have been met."""

    def __init__(
        self,
        giver: GiverProcess,
        peers: Mapping[str, Peer],
        largest_bytes: int,
        clock: Clock,
        cpu_s: Callable[[], float],
    ) -> None:
        self._giver = giver
        self._peers = peers
        self._clock = clock
        self._cpu_s = cpu_s
        self._source = np.full(largest_bytes, 1, dtype=np.uint8)
        self._target = np.full(largest_bytes, 2, dtype=np.uint8)
        self._takers: dict[str, RawTaker] = {}

    async def meet(self, name: str) -> None:
        """Make both ends of a raw peer and a first small move. Raises BenchError, or what its library raises."""
        taker = self._takers[name] = self._peers[name].taker(self._target)
        taker.meet(await self._giver.meet(name, taker.hello()))
        self._target[:1024] = 2
        await self.move(RawCase(name, 1024))
        if not (self._target[:1024] == 1).all():
            raise OSError(f"{name} says that it is done, but the bytes are not there")

    async def move(self, case: RawCase) -> Taken:
        """Once. The libraries block, and so does this. Raises BenchError, or what the library raises."""
        return self._copy(case.size_bytes) if case.mover == MEMCPY else await self._take(case.mover, case.size_bytes)

    def close(self) -> None:
        """Let go of every peer."""
        while self._takers:
            self._takers.popitem()[1].close()

    def _copy(self, num_bytes: int) -> Taken:
        cpu_s, started_at = self._cpu_s(), self._clock.now()
        np.copyto(self._target[:num_bytes], self._source[:num_bytes])
        ended_at = self._clock.now()
        return Taken(ended_at - started_at, self._cpu_s() - cpu_s, num_bytes, 0.0)

    async def _take(self, name: str, num_bytes: int) -> Taken:
        giving = await self._giver.start_raw(name, num_bytes)
        cpu_s, started_at = self._cpu_s(), self._clock.now()
        try:
            self._takers[name].take(num_bytes)
        except Exception:
            # The giver has an answer to this move too; left unread it would be taken for the next one's.
            async with asyncio.timeout(_ANSWER_S):
                await self._giver.raw_done()
            raise
        ended_at, own_cpu_s = self._clock.now(), self._cpu_s() - cpu_s
        gave = await self._giver.raw_done()
        return Taken(ended_at - started_at, own_cpu_s + gave.cpu_s - giving.cpu_s, num_bytes, 0.0)
