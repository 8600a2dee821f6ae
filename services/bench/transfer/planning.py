"""Planning and binding a large model's ranks, and what the plan then moves."""

import random

import msgspec
import torch

from common.clock import Clock
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from services.bench.repeats import Measured, OnStep, interleave
from services.bench.report import Row, Where
from services.bench.transfer.caches import folded_memory, random_blocks
from services.bench.transfer.stages import pack_all, pack_buffers, segments_of, unpack_all
from transfer.binding import Binding
from transfer.kernels.registry import kernel_for
from transfer.memory import PagedMemory
from transfer.ranks import RankPlan, heads_of_rank, plan_ranks

SOURCE_RANKS, TARGET_RANKS = 8, 6
_HEADS = 8
_OWN_LAYERS = 8

_MODEL = KVLayout(
    model="bench",
    dtype=KVDType.BFLOAT16,
    block_size=16,
    order=KVOrder.NHD,
    layers=Interval(0, 64),
    heads=Interval(0, _HEADS),
    head_dim=128,
)


class _Sample(msgspec.Struct, frozen=True):
    plan_s: float
    bind_s: float
    pack_s: float
    unpack_s: float


class _Ranks(msgspec.Struct, frozen=True):
    """Every rank's layout, and the memory of the two whose share is executed."""

    sources: tuple[KVLayout, ...]
    targets: tuple[KVLayout, ...]
    given: PagedMemory
    taken: PagedMemory
    num_tokens: int


async def measure_planning(num_blocks: int, segment_bytes: int, rounds: int, clock: Clock, on_step: OnStep) -> Row:
    """64 layers × `num_blocks` blocks, 8 ranks → 6: plan all shares, then bind both ends of the first and move it, with
    one thread."""
    ranks = _ranks(num_blocks)

    async def once() -> _Sample:
        return _sample(ranks, segment_bytes, clock)

    samples = (await interleave({"planning": once}, rounds, on_step))["planning"]
    share = plan_ranks(ranks.sources, ranks.targets).shares[0].plan
    gigabytes = share.payload_bytes(ranks.num_tokens) / 1e9
    return {
        "kind": "plan",
        "where": Where.REAL,
        "repeats": len(samples),
        "layers": len(_MODEL.layers),
        "blocks": num_blocks,
        "source_ranks": SOURCE_RANKS,
        "target_ranks": TARGET_RANKS,
        "kernel": kernel_for(torch.device("cpu")).name,
        "wire_bytes": share.payload_bytes(ranks.num_tokens),
        **Measured.of(sample.plan_s * 1e3 for sample in samples).columns("plan_ms"),
        **Measured.of(sample.bind_s * 1e3 for sample in samples).columns("bind_ms"),
        **Measured.of(gigabytes / sample.pack_s for sample in samples).columns("pack_gb_per_s"),
        **Measured.of(gigabytes / sample.unpack_s for sample in samples).columns("unpack_gb_per_s"),
    }


def _ranks(num_blocks: int) -> _Ranks:
    sources = tuple(_of_rank(_MODEL, rank, SOURCE_RANKS) for rank in range(SOURCE_RANKS))
    wanted = msgspec.structs.replace(_MODEL, block_size=64, order=KVOrder.HND)
    targets = tuple(_of_rank(wanted, rank, TARGET_RANKS) for rank in range(TARGET_RANKS))
    num_tokens = num_blocks * _MODEL.block_size
    given, taken = (folded_memory(layout, num_tokens, _OWN_LAYERS) for layout in (sources[0], targets[0]))
    return _Ranks(sources, targets, given, taken, num_tokens)


def _of_rank(layout: KVLayout, rank: int, ranks: int) -> KVLayout:
    return msgspec.structs.replace(layout, heads=heads_of_rank(rank, ranks, _HEADS))


def _sample(ranks: _Ranks, segment_bytes: int, clock: Clock) -> _Sample:
    kernel, rng = kernel_for(torch.device("cpu")), random.Random(4)
    tables = [random_blocks(memory, ranks.num_tokens, rng) for memory in (ranks.given, ranks.taken)]
    marks = [clock.now()]
    plan: RankPlan = plan_ranks(ranks.sources, ranks.targets)
    marks.append(clock.now())
    share = plan.shares[0].plan
    given = Binding(share, ranks.given, tables[0], kernel)
    taken = Binding(share, ranks.taken, tables[1], kernel)
    marks.append(clock.now())
    segments, buffers = segments_of(share, ranks.num_tokens, segment_bytes), pack_buffers(segment_bytes)
    marks.append(clock.now())
    pack_all(given, segments, buffers)
    marks.append(clock.now())
    unpack_all(taken, segments, buffers)
    marks.append(clock.now())
    return _Sample(marks[1] - marks[0], marks[2] - marks[1], marks[4] - marks[3], marks[5] - marks[4])
