"""Ranks of a source → ranks of a target: which rank sends what to which, whatever the parallel degrees of either.

A rank is known by its layout alone: the layers (pipeline parallelism) and heads (tensor parallelism) that it holds.
What moves between two ranks is the intersection of their regions, so no degree has to divide another.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from common.kv.intervals import Interval
from common.kv.layout import KVLayout
from transfer.errors import LayoutMismatch
from transfer.plan import CopyPlan, Region, plan_copy, region_of


def heads_of_rank(rank: int, ranks: int, heads: int) -> Interval:
    """The KV heads of one tensor-parallel rank, [rank·K/T, (rank+1)·K/T) rounded down; with more ranks than heads the
    one head that it shares with others."""
    if not 0 <= rank < ranks or heads < 1:
        raise ValueError(f"rank {rank!r} of {ranks!r} with {heads!r} heads")
    start = rank * heads // ranks
    return Interval(start, start + 1 if ranks > heads else (rank + 1) * heads // ranks)


class Share(msgspec.Struct, frozen=True):
    """What one rank of the source gives to one rank of the target: a hand-off of its own."""

    source_rank: int
    target_rank: int
    plan: CopyPlan


class RankPlan(msgspec.Struct, frozen=True):
    """Every share. Construction fails unless each rank of the target is covered exactly once."""

    targets: tuple[KVLayout, ...]
    shares: tuple[Share, ...]

    def __post_init__(self) -> None:
        for rank, target in enumerate(self.targets):
            regions = [share.plan.region for share in self.shares if share.target_rank == rank]
            whole = region_of(target)
            overlap = any(a.intersect(b).area for index, a in enumerate(regions) for b in regions[:index])
            if overlap or sum(region.area for region in regions) != whole.area:
                raise ValueError(f"rank {rank} of the target holds {whole!r}, which {regions!r} do not cover exactly")


def plan_ranks(sources: Sequence[KVLayout], targets: Sequence[KVLayout]) -> RankPlan:
    """The shares that fill all `targets` from `sources`; both sides derive the same ones.

    Where several ranks of the source hold the same (replicated heads, a latent), the one that has the least to send
    so far gives it.  Raises LayoutMismatch where nobody holds what a target needs.
    """
    load = [0] * len(sources)
    shares: list[Share] = []
    for target_rank, target in enumerate(targets):
        for cell in _cells(region_of(target), sources):
            owner = _owner(cell, sources, load)
            load[owner] += cell.area
            shares.append(Share(owner, target_rank, plan_copy(sources[owner], target, cell)))
    return RankPlan(tuple(targets), tuple(shares))


def _cells(region: Region, sources: Sequence[KVLayout]) -> list[Region]:
    """`region` cut wherever a rank of the source begins or ends, in layers and in heads."""
    return [
        Region(layers, heads)
        for layers in _cut(region.layers, [source.layers for source in sources])
        for heads in _cut(region.heads, [source.heads for source in sources])
    ]


def _cut(whole: Interval, others: Sequence[Interval]) -> list[Interval]:
    edges = {edge for other in others for edge in (other.start, other.stop) if whole.start < edge < whole.stop}
    ordered = [whole.start, *sorted(edges), whole.stop]
    return [Interval(start, stop) for start, stop in pairwise(ordered)]


def _owner(cell: Region, sources: Sequence[KVLayout], load: Sequence[int]) -> int:
    owners = [rank for rank, source in enumerate(sources) if region_of(source).contains(cell)]
    if not owners:
        held = [region_of(source) for source in sources]
        raise LayoutMismatch("ranks", held, cell, "the source's ranks must hold every layer and head together")
    return min(owners, key=lambda rank: (load[rank], rank))
