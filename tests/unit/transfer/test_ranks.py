from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.kv.intervals import Interval
from common.kv.layout import KVKind, KVLayout
from transfer.errors import LayoutMismatch
from transfer.plan import region_of
from transfer.ranks import RankPlan, Share, heads_of_rank, plan_ranks
from transfer.testing import example_layout


def grid(heads: int, tp: int, stages: Sequence[Interval] = (Interval(0, 4),), **changes: object) -> list[KVLayout]:
    """One layout for each rank: pipeline stages × tensor-parallel ranks."""
    base = msgspec.structs.replace(example_layout(), **changes)
    return [
        msgspec.structs.replace(base, layers=layers, heads=heads_of_rank(rank, tp, heads))
        for layers in stages
        for rank in range(tp)
    ]


def shares_of(plan: RankPlan, rank: int) -> list[Share]:
    """Those that fill one rank of the target."""
    return [share for share in plan.shares if share.target_rank == rank]


def stages(num_layers: int, cuts: Sequence[int]) -> list[Interval]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < num_layers}), num_layers]
    return [Interval(start, stop) for start, stop in pairwise(edges)]


@given(
    heads=st.integers(1, 17),
    tp=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    cuts=st.tuples(*[st.lists(st.integers(1, 8), max_size=4)] * 2),
)
def test_every_coordinate_comes_exactly_once(
    heads: int, tp: tuple[int, int], cuts: tuple[list[int], list[int]]
) -> None:
    sources, targets = (grid(heads, degree, stages(9, cut)) for degree, cut in zip(tp, cuts, strict=True))
    plan = plan_ranks(sources, targets)
    for rank, target in enumerate(targets):
        arrivals = Counter(
            (layer, head)
            for share in shares_of(plan, rank)
            for layer in range(share.plan.layers.start, share.plan.layers.stop)
            for head in range(share.plan.region.heads.start, share.plan.region.heads.stop)
        )
        needed = region_of(target)
        assert set(arrivals.values()) == {1}
        assert len(arrivals) == needed.area
        for share in shares_of(plan, rank):
            assert region_of(sources[share.source_rank]).contains(share.plan.region)


def vllm_sources(rank: int, tp_target: int, tp_source: int, heads: int) -> list[tuple[int, int, int]]:
    """(source rank, first head of the slice within it, heads) as vLLM's connector computes them; degrees divide."""
    if tp_target >= tp_source:
        source = rank * tp_source // tp_target
        if tp_target > heads:
            offset = rank * heads // tp_target - source * heads // tp_source
        else:
            offset = rank % (tp_target // tp_source) * (heads // tp_target)
        return [(source, offset, max(1, heads // tp_target))]
    each = tp_source // tp_target
    by_head = {source * heads // tp_source: source for source in reversed(range(rank * each, (rank + 1) * each))}
    return [(source, 0, max(1, heads // tp_source)) for source in sorted(by_head.values())]


def sglang_slice(source: int, target: int, tp_source: int, tp_target: int, heads: int) -> tuple[int, int, int]:
    """(first head within the source, first within the target, heads) for a pair of ranks that share heads."""
    held_source, held_target = max(1, heads // tp_source), max(1, heads // tp_target)
    if tp_source > tp_target:
        replicas = max(1, tp_source // heads)
        return 0, source // replicas * held_source % held_target, held_source
    replicas = max(1, tp_target // heads)
    return target // replicas * held_target % held_source, 0, held_target


POWERS = [1, 2, 4, 8, 16, 32]
CASES = [(heads, a, b) for heads in (1, 2, 4, 8, 16) for a in POWERS for b in POWERS]


@pytest.mark.parametrize(("heads", "tp_source", "tp_target"), CASES)
def test_the_same_heads_as_the_published_formulas(heads: int, tp_source: int, tp_target: int) -> None:
    """Which replica sends may differ (ours are balanced); which heads arrive where may not."""
    sources, targets = grid(heads, tp_source), grid(heads, tp_target)
    plan = plan_ranks(sources, targets)
    for rank, target in enumerate(targets):
        ours = {(share.plan.region.heads.start, len(share.plan.region.heads)) for share in shares_of(plan, rank)}
        theirs = {
            (sources[source].heads.start + offset, count)
            for source, offset, count in vllm_sources(rank, tp_target, tp_source, heads)
        }
        assert ours == theirs
        for share in shares_of(plan, rank):
            source = sources[share.source_rank]
            moved = share.plan.region.heads
            assert sglang_slice(share.source_rank, rank, tp_source, tp_target, heads) == (
                moved.start - source.heads.start,
                moved.start - target.heads.start,
                len(moved),
            )


@pytest.mark.parametrize(("heads", "tp"), [(2, 8), (1, 6), (4, 16)])
def test_replicated_heads_come_from_all_their_owners_evenly(heads: int, tp: int) -> None:
    plan = plan_ranks(grid(heads, tp), grid(heads, tp))
    assert set(Counter(share.source_rank for share in plan.shares).values()) == {1}


def test_a_latent_is_spread_over_the_ranks_that_hold_it() -> None:
    latent = [msgspec.structs.replace(example_layout(), heads=Interval(0, 1), kind=KVKind.LATENT)] * 4
    assert [share.source_rank for share in plan_ranks(latent, latent).shares] == [0, 1, 2, 3]


def test_what_nobody_holds_is_named() -> None:
    with pytest.raises(LayoutMismatch) as mismatch:
        plan_ranks(grid(8, 4)[:3], grid(8, 2))
    assert mismatch.value.field == "ranks"


def test_a_plan_with_a_hole_or_an_overlap_cannot_be_made() -> None:
    sources, targets = grid(8, 4), grid(8, 1)
    shares = plan_ranks(sources, targets).shares
    with pytest.raises(ValueError, match="exactly"):
        RankPlan(tuple(targets), shares[1:])
    with pytest.raises(ValueError, match="exactly"):
        RankPlan(tuple(targets), (*shares, Share(0, 0, shares[0].plan)))


def test_no_such_rank() -> None:
    for arguments in ((4, 4, 8), (-1, 4, 8), (0, 0, 8), (0, 4, 0)):
        with pytest.raises(ValueError, match="rank"):
            heads_of_rank(*arguments)
