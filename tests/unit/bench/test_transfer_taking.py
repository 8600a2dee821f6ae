"""A desk and a taker in one process."""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import chain, pairwise

import pytest
import torch

from common.clock import SystemClock
from services.bench.transfer.backends import usable_backends
from services.bench.transfer.caches import folded_memory, random_blocks, touched_memory
from services.bench.transfer.cases import LAYERS, MIB, SOURCE, TARGETS, LayoutCase, TakeCase
from services.bench.transfer.desk import GivingDesk
from services.bench.transfer.errors import BenchError
from services.bench.transfer.limits import bench_limits
from services.bench.transfer.messages import OfferKV
from services.bench.transfer.sinks import Sinks
from services.bench.transfer.stages import segments_of
from services.bench.transfer.taker import Taker
from transfer.backends.base import Backend
from transfer.backends.inproc import InprocBackend, InprocFaults

SEGMENT = 64 << 10
SCHEME = "inproc"


@asynccontextmanager
async def desk_and_sinks(backend: Backend | None = None) -> AsyncIterator[tuple[GivingDesk, Sinks]]:
    backends: Mapping[str, Backend] = {SCHEME: backend or InprocBackend()}
    clock = SystemClock()
    desk = GivingDesk(touched_memory(SOURCE, 16), backends, bench_limits(SEGMENT), clock, lambda: 0.0)
    sinks = Sinks(backends, MIB, SEGMENT, clock)
    await desk.start()
    try:
        yield desk, sinks
    finally:
        await sinks.close()
        await desk.close()


@pytest.mark.parametrize("layout", LayoutCase)
async def test_a_take_fills_the_cache_and_says_what_went_over_the_wire(layout: LayoutCase):
    async with desk_and_sinks() as (desk, sinks):
        given, memory = touched_memory(SOURCE, 16), sinks.memories[layout]
        for tensor in chain(*memory.parts):
            tensor.zero_()
        case = TakeCase(SCHEME, MIB, layout, checksum=True)
        taken = await Taker(sinks, {SCHEME: desk}, SystemClock(), lambda: 0.0).take(case)
        assert taken.wire_bytes == case.wire_bytes
        heads = TARGETS[layout].heads
        for got, sent in zip(memory.views(), given.views(), strict=True):
            there = sent[0, : case.num_tokens, heads.start : heads.stop]
            assert torch.equal(got[0, : case.num_tokens], there.to(got.dtype))
            assert torch.count_nonzero(got[0, case.num_tokens :]) == 0


async def test_paced_layers_become_ready_one_after_the_other():
    async with desk_and_sinks() as (desk, sinks):
        case = TakeCase(SCHEME, MIB, LayoutCase.IDENTITY, checksum=False)
        taken = await Taker(sinks, {SCHEME: desk}, SystemClock(), lambda: 0.0).take(case, pace_s=0.05)
        assert 0.0 <= taken.tail_s < taken.seconds


async def test_an_offer_that_is_not_acknowledged_is_an_error():
    async with desk_and_sinks(InprocBackend(InprocFaults(drop_at_write=0))) as (desk, sinks):
        offered = await desk.offer(OfferKV("a", SCHEME, 8))
        sink = sinks.sink(LayoutCase.IDENTITY, checksum=False)
        with pytest.raises(Exception, match="closed"):
            await sink.take(offered.ticket, range(1), 8, 10.0)
        with pytest.raises(BenchError, match="did not end well"):
            await desk.ended()


def test_segments_cover_a_prompt():
    plan = TakeCase(SCHEME, MIB, LayoutCase.FULL, checksum=False).plan
    segments = segments_of(plan, 100, SEGMENT)
    assert sum(segment.area for segment in segments) == 100 * LAYERS
    assert all(segment.area * plan.token_bytes_per_layer <= SEGMENT for segment in segments)


def test_block_tables_are_distinct_and_out_of_order():
    memory = touched_memory(SOURCE, 64 * 16)
    blocks = random_blocks(memory, 60 * 16 + 1, random.Random(0))
    assert len(blocks) == len(set(blocks)) == 61
    assert any(b < a for a, b in pairwise(blocks))


def test_folded_layers_share_memory():
    memory = folded_memory(SOURCE, 16, 3)
    keys = memory.parts[0]
    assert len(keys) == LAYERS
    assert keys[0].data_ptr() == keys[3].data_ptr() != keys[1].data_ptr()


def test_a_backend_that_cannot_be_had_is_skipped_with_its_reason():
    def absent() -> type[Backend]:
        raise ImportError("no such library")

    usable = usable_backends({"x": absent, SCHEME: lambda: InprocBackend})
    assert list(usable.backends) == [SCHEME]
    assert usable.skipped == {"x": "ImportError: no such library"}
