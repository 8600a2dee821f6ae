"""Gives KV on command: the source's side of a measurement, in whatever process."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from common.clock import Clock
from common.ids import Generation, TransferId
from common.kv.ownership import Acknowledged
from common.kv.ticket import Ticket
from common.tasks import TaskScope
from services.bench.transfer.caches import random_blocks
from services.bench.transfer.errors import BenchError
from services.bench.transfer.messages import Offered, OfferEnded, OfferKV
from transfer.backends.base import Backend
from transfer.limits import TransferLimits
from transfer.memory import PagedMemory
from transfer.offer import Offer
from transfer.source import KVSource

GIVER_GENERATION, TAKER_GENERATION = Generation(1), Generation(2)
DEADLINE_S = 60.0


class Giver(Protocol):
    """Opens one offer after the other."""

    async def offer(self, order: OfferKV) -> Offered:
        """Open an offer; the one before must have ended. Raises BenchError."""
        ...

    async def ended(self) -> OfferEnded:
        """When the sink holds everything; raises BenchError if it never will."""
        ...


class GivingDesk:
    """A Giver over a KVSource of its own. `cpu_s` says how much CPU time to report."""

    def __init__(
        self,
        memory: PagedMemory,
        backends: Mapping[str, Backend],
        limits: TransferLimits,
        clock: Clock,
        cpu_s: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._cpu_s = cpu_s
        self._schemes = tuple(backends)
        self._source = KVSource(memory, GIVER_GENERATION, limits, clock, tuple(backends.values()))
        self._rng = random.Random(1)
        self._tasks = TaskScope("giving-desk")
        self._offer: Offer | None = None
        self._computed_at_s = 0.0
        self.endpoints: Mapping[str, str] = {}

    async def start(self) -> None:
        """Listen; afterwards `endpoints` says where, by scheme. Raises OSError."""
        self.endpoints = dict(zip(self._schemes, await self._source.start(), strict=True))

    async def offer(self, order: OfferKV) -> Offered:
        """See Giver."""
        endpoint = self.endpoints[order.scheme]
        ticket = Ticket(TransferId(order.name), b"bench", GIVER_GENERATION, TAKER_GENERATION, (endpoint,))
        blocks = random_blocks(self._memory, order.num_tokens, self._rng)
        self._offer = self._source.offer(ticket, blocks, order.num_tokens, DEADLINE_S)
        self._announce(self._offer, order.pace_s)
        return Offered(ticket, self._cpu_s())

    async def ended(self) -> OfferEnded:
        """See Giver."""
        if self._offer is None:
            raise BenchError("nothing has been offered")
        match await self._offer.ended():
            case Acknowledged():
                return OfferEnded(self._cpu_s(), self._computed_at_s)
            case end:
                raise BenchError(f"a hand-off did not end well: {end!r}")

    async def close(self) -> None:
        """End the source."""
        await self._tasks.close()
        await self._source.close()

    def _announce(self, offer: Offer, pace_s: float) -> None:
        if pace_s == 0.0:
            self._computed_at_s = self._clock.now()
            for layer in _layers(offer):
                offer.layer_ready(layer, offer.num_tokens)
        else:
            self._tasks.start(asyncio.to_thread(self._compute, offer, pace_s, asyncio.get_running_loop()), "compute")

    def _compute(self, offer: Offer, pace_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """A thread, as an engine's is: an event loop's timers are too coarse for the layers of a short prompt."""
        started_at, layers = self._clock.now(), _layers(offer)
        for number, layer in enumerate(layers, start=1):
            time.sleep(max(0.0, started_at + pace_s * number / len(layers) - self._clock.now()))
            self._computed_at_s = self._clock.now()
            loop.call_soon_threadsafe(offer.layer_ready, layer, offer.num_tokens)


def _layers(offer: Offer) -> range:
    return range(offer.layers.start, offer.layers.stop)
