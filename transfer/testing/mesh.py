"""A source and a sink over one backend, small layouts, and caches full of noise."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import msgspec
import torch

from common.clock import SystemClock
from common.ids import Generation, TransferId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.kv.ownership import Acknowledged
from common.kv.ticket import Ticket
from transfer.backends.base import Backend, Buffer
from transfer.limits import TransferHoldings, TransferLimits
from transfer.memory import PagedMemory
from transfer.offer import Offer
from transfer.sink import KVSink
from transfer.sink_session import Landed
from transfer.source import KVSource

P_GENERATION, D_GENERATION = Generation(71), Generation(72)
NUM_TOKENS = 30
DEADLINE_S = 30.0
NUM_BLOCKS = 64


def example_layout(order: KVOrder = KVOrder.NHD, dtype: KVDType = KVDType.FLOAT32) -> KVLayout:
    """Small, and its 30 tokens end within a block and within a segment."""
    return KVLayout(
        model="example",
        dtype=dtype,
        block_size=4,
        order=order,
        layers=Interval(2, 6),
        heads=Interval(0, 2),
        head_dim=8,
    )


def example_limits(**changes: object) -> TransferLimits:
    """Segments of 8 tokens of one layer of `example_layout()`, three zones, and little patience."""
    base = TransferLimits(
        segment_bytes=1024, landing_zones=3, max_staging_bytes=16 << 10, progress_timeout_s=0.4, max_parked=4
    )
    return msgspec.structs.replace(base, **changes)


def peer_ticket(endpoints: tuple[str, ...], name: str = "t") -> Ticket:
    """The ticket of a hand-off between P_GENERATION and D_GENERATION."""
    return Ticket(TransferId(name), b"secret", P_GENERATION, D_GENERATION, endpoints)


def random_memory(layout: KVLayout, num_blocks: int = NUM_BLOCKS, seed: int = 0) -> PagedMemory:
    """A cache full of noise."""
    memory = PagedMemory.zeros(layout, num_blocks)
    generator = torch.Generator().manual_seed(seed)
    for tensor in chain(*memory.parts):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return memory


def kv_of_token(memory: PagedMemory, block: int, slot: int) -> torch.Tensor:
    """[layers, parts, heads, head_dim] of one token, read the slow and obvious way."""
    at = (block, slot) if memory.layout.order is KVOrder.NHD else (block, slice(None), slot)
    return torch.stack([torch.stack([tensor[at] for tensor in layer]) for layer in zip(*memory.parts, strict=True)])


@dataclass
class Mesh:
    """A source with noise and a sink with zeros over one backend."""

    backend: Backend
    source: KVSource
    sink: KVSink
    given: PagedMemory
    taken: PagedMemory
    endpoints: tuple[str, ...]
    limits: TransferLimits
    borrowed: list[Buffer] = field(default_factory=list)
    """Given back to the backend in the end."""

    def borrow(self, count: int) -> list[Buffer]:
        """So many landing zones."""
        zones = [self.backend.allocate(self.limits.segment_bytes) for _ in range(count)]
        self.borrowed.extend(zones)
        return zones

    def ticket(self, name: str = "t", **changes: object) -> Ticket:
        """The right ticket, or one with some fields changed."""
        return msgspec.structs.replace(peer_ticket(self.endpoints, name), **changes)

    def offer(self, name: str = "t", *, layers: int = 4, deadline_s: float = DEADLINE_S, first: int = 0) -> Offer:
        """Blocks 63 - first, 62 - first, … with the first `layers` layers ready."""
        blocks = range(NUM_BLOCKS - 1 - first, NUM_BLOCKS - 9 - first, -1)
        offer = self.source.offer(self.ticket(name), blocks, NUM_TOKENS, deadline_s)
        make_ready(offer, 0, layers)
        return offer

    def take(self, name: str = "t", first: int = 0, **changes: Any) -> "asyncio.Task[Landed]":
        """Start a take into the blocks first, first + 1, …"""
        work = self.sink.take(self.ticket(name, **changes), range(first, first + 8), NUM_TOKENS, DEADLINE_S)
        return asyncio.get_running_loop().create_task(work)

    def assert_arrived(self, first: int = 0) -> None:
        """Every token of the hand-off is where it should be, and the rest of its last block is untouched."""
        for token in range(32):
            block, slot = divmod(token, 4)
            there = kv_of_token(self.taken, first + block, slot)
            wanted = kv_of_token(self.given, NUM_BLOCKS - 1 - first - block, slot)
            assert torch.equal(there, wanted if token < NUM_TOKENS else torch.zeros_like(there)), token

    async def idle(self) -> None:
        """Wait until neither side holds anything."""
        await eventually(lambda: self.source.holdings() == self.sink.holdings() == TransferHoldings())

    async def assert_works(self) -> None:
        """A fresh hand-off goes through: whatever happened before harmed nobody else."""
        offer = self.offer("fresh", first=24)
        await self.take("fresh", first=24)
        assert await offer.ended() == Acknowledged(4 * NUM_TOKENS * 128)
        self.assert_arrived(first=24)


@asynccontextmanager
async def mesh(
    backend: Backend,
    layout: KVLayout | None = None,
    limits: TransferLimits | None = None,
    target: KVLayout | None = None,
) -> AsyncIterator[Mesh]:
    """A `Mesh` that must be idle in the end, and is closed; the sink's layout is `target`, or the same."""
    layout, limits = layout or example_layout(), limits or example_limits()
    given, taken = random_memory(layout), PagedMemory.zeros(target or layout, NUM_BLOCKS)
    source = KVSource(given, P_GENERATION, limits, SystemClock(), [backend])
    sink = KVSink(taken, D_GENERATION, limits, SystemClock(), [backend])
    try:
        made = Mesh(backend, source, sink, given, taken, await source.start(), limits)
        yield made
        await made.idle()
    finally:
        await sink.close()
        await source.close()
    for buffer in made.borrowed:
        backend.free(buffer)


def make_ready(offer: Offer, start: int, stop: int, num_tokens: int = NUM_TOKENS) -> None:
    """All tokens of layers number start…stop of the offer are computed."""
    for layer in range(2 + start, 2 + stop):
        offer.layer_ready(layer, num_tokens)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition()`; a test that waits in vain is ended by its own limit."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - conditions are about what others hold, which nobody signals
            await asyncio.sleep(0.002)
