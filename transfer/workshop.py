"""What all hand-offs of one source or sink share."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from common.clock import Clock
from common.kv.layout import KVDType, KVLayout
from common.tasks import TaskScope
from transfer.backends.base import Backend, Link
from transfer.kernels.registry import kernel_for
from transfer.limits import TransferHoldings, TransferLimits
from transfer.memory import PagedMemory
from transfer.pinning import HostPinning
from transfer.protocol.messages import SPOKEN, Capabilities
from transfer.staging import StagingPool
from transfer.waiting import Worker

_log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What a source or sink has moved since it started."""

    payload_bytes: int = 0
    """Bytes of KV on the wire."""
    clamped_elements: int = 0
    """Elements beyond what the type they were cast to can hold, set to its largest value."""


class Workshop:
    """Memory, a thread, staging buffers, tasks and open links. Owned by one KVSource or KVSink."""

    def __init__(
        self, name: str, memory: PagedMemory, limits: TransferLimits, clock: Clock, backends: Sequence[Backend]
    ) -> None:
        self.memory = memory
        self.limits = limits
        self.clock = clock
        self.worker = Worker(name)
        device = torch.device(memory.layout.device)
        self.kernel = kernel_for(device, limits.kernel_threads)
        _log.info("%s packs with the %s kernel", name, self.kernel.name)
        pinning = HostPinning.for_device(device)
        self.staging = {
            backend.scheme: StagingPool(backend, limits.segment_bytes, limits.max_staging_bytes, pinning)
            for backend in backends
        }
        self.tasks = TaskScope(name)
        self.links: set[Link] = set()
        """Open ones. A task that is cancelled before its first step cannot close its link, so `close` does."""

    def holdings(self, *, offers: int, parked: int) -> TransferHoldings:
        """What is held now."""
        return TransferHoldings(
            offers=offers,
            parked=parked,
            connections=len(self.links),
            staging_bytes=sum(pool.bytes_in_use for pool in self.staging.values()),
            tasks=len(self.tasks),
        )

    async def close(self) -> None:
        """End every task and link, and the thread."""
        await self.tasks.close()
        while self.links:
            await self.links.pop().close()
        self.worker.close()
        for pool in self.staging.values():
            pool.close()


def capabilities_of(layout: KVLayout, limits: TransferLimits) -> Capabilities:
    """What this release can do for a cache of `layout`."""
    return Capabilities(versions=SPOKEN, layout=layout, dtypes=tuple(KVDType), max_segment_bytes=limits.segment_bytes)
