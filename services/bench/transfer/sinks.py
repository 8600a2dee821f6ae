"""The bench process's side: a sink for every layout, with checksums and without."""

from collections.abc import Mapping

from common.clock import Clock
from services.bench.transfer.caches import touched_memory
from services.bench.transfer.cases import TARGETS, LayoutCase, tokens_of
from services.bench.transfer.desk import TAKER_GENERATION
from services.bench.transfer.limits import bench_limits
from transfer.backends.base import Backend
from transfer.sink import KVSink


class Sinks:
    """Owns the caches that are filled, one for each layout, and the sinks over them."""

    def __init__(self, backends: Mapping[str, Backend], largest_bytes: int, segment_bytes: int, clock: Clock) -> None:
        self.memories = {
            layout: touched_memory(target, tokens_of(layout, largest_bytes)) for layout, target in TARGETS.items()
        }
        self._sinks = {
            (layout, checksum): KVSink(
                memory,
                TAKER_GENERATION,
                bench_limits(segment_bytes, checksum=checksum),
                clock,
                tuple(backends.values()),
            )
            for layout, memory in self.memories.items()
            for checksum in (False, True)
        }

    def sink(self, layout: LayoutCase, *, checksum: bool) -> KVSink:
        """The one that takes in this layout."""
        return self._sinks[layout, checksum]

    async def close(self) -> None:
        """End every sink."""
        for sink in self._sinks.values():
            await sink.close()
