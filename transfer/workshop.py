"""What all hand-offs of one source or sink share."""

from common.clock import Clock
from common.tasks import TaskScope
from transfer.backends.base import Link
from transfer.limits import TransferHoldings, TransferLimits
from transfer.memory import PagedMemory
from transfer.staging import StagingPool
from transfer.waiting import Workers


class Workshop:
    """Memory, threads, staging buffers, tasks and open links. Owned by one KVSource or KVSink."""

    def __init__(self, name: str, memory: PagedMemory, limits: TransferLimits, clock: Clock) -> None:
        self.memory = memory
        self.limits = limits
        self.clock = clock
        self.workers = Workers(limits.workers, name)
        self.staging = StagingPool(limits.segment_bytes, limits.max_staging_bytes)
        self.tasks = TaskScope(name)
        self.links: set[Link] = set()
        """Open ones. A task that is cancelled before its first step cannot close its link, so `close` does."""

    def holdings(self, *, offers: int, parked: int) -> TransferHoldings:
        """What is held now."""
        return TransferHoldings(
            offers=offers,
            parked=parked,
            connections=len(self.links),
            staging_bytes=self.staging.bytes_in_use,
            tasks=len(self.tasks),
        )

    async def close(self) -> None:
        """End every task, link and thread."""
        await self.tasks.close()
        while self.links:
            await self.links.pop().close()
        self.workers.close()
