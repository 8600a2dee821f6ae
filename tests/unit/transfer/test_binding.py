"""Plans bound to memory, from any layout to any other, against a reference that knows only coordinates."""

import math
import struct
from collections.abc import Sequence

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVKind, KVLayout, KVOrder
from transfer.binding import Binding
from transfer.kernels.registry import kernel_for
from transfer.memory import PagedMemory, torch_dtype
from transfer.plan import CopyPlan
from transfer.ranks import heads_of_rank, plan_ranks
from transfer.rectangles import SegmentSchedule
from transfer.testing import example_layout, random_memory

KERNEL = kernel_for(torch.device("cpu"))


class Side(msgspec.Struct, frozen=True):
    """All ranks of one instance."""

    layouts: tuple[KVLayout, ...]
    blocks: tuple[int, ...]


@st.composite
def sides(draw: st.DrawFn, kind: KVKind, heads: int, num_layers: int, num_tokens: int) -> Side:
    """Any block size, order, packing, element type with or without scales, TP and PP."""
    dtype = draw(st.sampled_from(list(KVDType)))
    block_size = draw(st.integers(1, 9) | st.sampled_from([16, 64, 128]))
    order = draw(st.sampled_from(list(KVOrder)))
    tp = 1 if kind is KVKind.LATENT else draw(st.integers(1, 5))
    cut = draw(st.integers(1, num_layers))
    stages = [Interval(0, cut), Interval(cut, num_layers)] if cut < num_layers else [Interval(0, num_layers)]
    is_scaled = dtype.size_bytes == 1 and draw(st.booleans())
    layouts = []
    for layers in stages:
        for rank in range(tp):
            layout = KVLayout(
                model="m",
                dtype=dtype,
                block_size=block_size,
                order=order,
                layers=layers,
                heads=heads_of_rank(rank, tp, heads),
                head_dim=draw(st.just(8) | st.just(3)) if rank + layers.start == 0 else layouts[0].head_dim,
                packed=kind is KVKind.HEADS and draw(st.booleans()),
                kind=kind,
            )
            if is_scaled:
                count = len(layout.layers) * layout.parts * len(layout.heads)
                layout = msgspec.structs.replace(layout, scales=struct.pack(f"<{count}f", *_scales(layout)))
            layouts.append(layout)
    count = layouts[0].blocks_for(num_tokens)
    return Side(tuple(layouts), tuple(draw(st.permutations(range(count + 1)))[:count]))


def _scales(layout: KVLayout) -> list[float]:
    """Equal wherever the same head of the same layer is held; no two heads alike."""
    return [
        scale_of(layer, part, head)
        for layer in range(layout.layers.start, layout.layers.stop)
        for part in range(layout.parts)
        for head in range(layout.heads.start, layout.heads.stop)
    ]


def scale_of(layer: int, part: int, head: int) -> float:
    """Powers of two and others."""
    return (0.25, 0.7, 1.0, 3.0)[(layer + 2 * part + head) % 4]


def read(memory: PagedMemory, blocks: Sequence[int], at: tuple[int, int, int, int]) -> torch.Tensor:
    """The stored elements [head_dim] of (layer, part, head, token)."""
    layer, part, head, token = at
    layout = memory.layout
    block, slot = divmod(token, layout.block_size)
    tensor = memory.parts[part][layer - layout.layers.start][blocks[block]]
    row = head - layout.heads.start
    return tensor[slot, row] if layout.order is KVOrder.NHD else tensor[row, slot]


def converted(stored: torch.Tensor, source: KVLayout, target: KVLayout, at: tuple[int, int, int, int]) -> torch.Tensor:
    """What must arrive: cast(clamp(x · scale / scale)) in the element type of the target; the bits, if nothing is."""
    scales = [scale_of(*at[:3]) if layout.scales else None for layout in (source, target)]
    if source.dtype is target.dtype and scales[0] == scales[1]:
        return stored
    values = stored.to(torch.float32)
    values = values if scales[0] is None else values * torch.tensor(scales[0])
    values = values if scales[1] is None else values / torch.tensor(scales[1])
    return values.clamp(-target.dtype.largest, target.dtype.largest).to(torch_dtype(target.dtype))


def bits(tensor: torch.Tensor) -> list[int]:
    """Equality of bytes: NaN is equal to itself here."""
    return tensor.contiguous().view(torch.uint8).tolist()


def move(
    plan: CopyPlan, given: tuple[PagedMemory, Sequence[int]], taken: tuple[PagedMemory, Sequence[int]], tokens: int
) -> None:
    """In segments, as a hand-off does."""
    pack, unpack = Binding(plan, *given, KERNEL), Binding(plan, *taken, KERNEL)
    schedule = SegmentSchedule(plan.layers, 7, plan.source.block_size)
    while (part := schedule.next([tokens] * len(plan.layers))) is not None:
        staging = memoryview(bytearray(part.area * plan.token_bytes_per_layer + 3))
        pack.pack(part, staging)
        assert staging[-3:] == bytes(3)
        unpack.unpack(part, staging)


@settings(max_examples=60)
@given(
    data=st.data(),
    kind=st.sampled_from(list(KVKind)),
    heads=st.integers(1, 6),
    num_layers=st.integers(1, 3),
    num_tokens=st.integers(1, 40),
)
def test_any_layout_to_any_other(
    data: st.DataObject, kind: KVKind, heads: int, num_layers: int, num_tokens: int
) -> None:
    heads = 1 if kind is KVKind.LATENT else heads
    source, target = (data.draw(sides(kind, heads, num_layers, num_tokens)) for _ in range(2))
    dims = source.layouts[0].head_dim
    layouts = tuple(msgspec.structs.replace(layout, head_dim=dims) for layout in target.layouts)
    given_memory = [
        random_memory(layout, len(source.blocks) + 1, seed=7 * rank) for rank, layout in enumerate(source.layouts)
    ]
    taken_memory = [PagedMemory.zeros(layout, len(target.blocks) + 1) for layout in layouts]
    plan = plan_ranks(source.layouts, layouts)
    owner = {}
    for share in plan.shares:
        given_side = given_memory[share.source_rank], source.blocks
        move(share.plan, given_side, (taken_memory[share.target_rank], target.blocks), num_tokens)
        for layer in range(share.plan.layers.start, share.plan.layers.stop):
            for head in range(share.plan.region.heads.start, share.plan.region.heads.stop):
                owner[share.target_rank, layer, head] = share.source_rank

    for rank, memory in enumerate(taken_memory):
        nonzero = 0
        for layer in range(memory.layout.layers.start, memory.layout.layers.stop):
            for head in range(memory.layout.heads.start, memory.layout.heads.stop):
                giver = given_memory[owner[rank, layer, head]]
                for at in (
                    (layer, part, head, token) for part in range(giver.layout.parts) for token in range(num_tokens)
                ):
                    wanted = converted(read(giver, source.blocks, at), giver.layout, memory.layout, at)
                    there = read(memory, target.blocks, at)
                    assert bits(there) == bits(wanted), at
                    nonzero += int(torch.count_nonzero(there.float()))
        everything = sum(int(torch.count_nonzero(t.float())) for part in memory.parts for t in part)
        assert everything == nonzero, "something was written beside the hand-off"


@pytest.mark.parametrize(
    ("wide", "narrow", "relative"),
    [
        (KVDType.FLOAT32, KVDType.BFLOAT16, 2**-8),
        (KVDType.FLOAT32, KVDType.FLOAT16, 2**-11),
        (KVDType.FLOAT32, KVDType.FLOAT8_E4M3FN, 2**-4),
        (KVDType.FLOAT32, KVDType.FLOAT8_E4M3FNUZ, 2**-4),
        (KVDType.BFLOAT16, KVDType.FLOAT8_E4M3FN, 2**-4),
    ],
)
def test_the_error_of_a_cast_is_bounded(wide: KVDType, narrow: KVDType, relative: float) -> None:
    """Half a unit in the last place, for normal numbers: docs/transfer.md states these bounds."""
    source, target = example_layout(dtype=wide), example_layout(dtype=narrow)
    given_memory, taken = random_memory(source, 8), PagedMemory.zeros(target, 8)
    (share,) = plan_ranks([source], [target]).shares
    move(share.plan, (given_memory, range(8)), (taken, range(8)), 32)
    for part in range(2):
        for before, after in zip(given_memory.parts[part], taken.parts[part], strict=True):
            x, y = before.float(), after.float()
            normal = x.abs() >= 2**-6
            assert ((x - y).abs() <= relative * x.abs())[normal].all()
            assert not torch.equal(x, y)


def test_the_two_fp8_types_are_not_read_as_each_other() -> None:
    """The same byte differs by a factor of two."""
    source = example_layout(dtype=KVDType.FLOAT8_E4M3FN)
    target = msgspec.structs.replace(source, dtype=KVDType.FLOAT8_E4M3FNUZ)
    given_memory, taken = random_memory(source, 8), PagedMemory.zeros(target, 8)
    (share,) = plan_ranks([source], [target]).shares
    move(share.plan, (given_memory, range(8)), (taken, range(8)), 32)
    before, after = given_memory.parts[0][0].float(), taken.parts[0][0].float()
    assert torch.equal(before, after)
    assert math.isclose(float(before.abs().max()), float(after.abs().max()))


def test_clamped_elements_are_counted() -> None:
    source, target = example_layout(), example_layout(dtype=KVDType.FLOAT16)
    memory, taken = PagedMemory.zeros(source, 8), PagedMemory.zeros(target, 8)
    memory.parts[0][0][0, 0, 0, 0] = 1e6
    memory.parts[1][3][7, 3, 1, 7] = -math.inf
    (share,) = plan_ranks([source], [target]).shares
    part = SegmentSchedule(share.plan.layers, 1000).next([32] * 4)
    assert part is not None
    staging = memoryview(bytearray(part.area * share.plan.token_bytes_per_layer))
    assert Binding(share.plan, memory, range(8), KERNEL).pack(part, staging) == 2
    assert Binding(share.plan, taken, range(8), KERNEL).unpack(part, staging) == 0
    assert float(taken.parts[0][0][0, 0, 0, 0]) == 65504.0
    assert float(taken.parts[1][3][7, 3, 1, 7]) == -65504.0


@pytest.mark.parametrize(
    ("blocks", "num_tokens", "why"),
    [
        ([0, 1], 9, "need 3 blocks"),
        ([0, 1], 0, "at least 1"),
        ([0, 0], 8, "distinct"),
        ([0, 64], 8, "distinct"),
        ([-1, 0], 8, "distinct"),
    ],
)
def test_blocks_are_checked(blocks: list[int], num_tokens: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PagedMemory.zeros(example_layout(), 64).check_blocks(blocks, num_tokens)


def test_surplus_blocks_are_left_alone() -> None:
    assert PagedMemory.zeros(example_layout(), 64).check_blocks([5, 6, 7], 5) == (5, 6)


def test_memory_must_fit_its_layout() -> None:
    layout = example_layout()
    tensors = [torch.zeros(3, 4, 2, 8) for _ in range(4)]
    assert PagedMemory.apart(layout, tensors, tensors).num_blocks == 3
    with pytest.raises(ValueError, match="4 layers"):
        PagedMemory.apart(layout, tensors[:3], tensors)
    with pytest.raises(ValueError, match=r"values\[1\]"):
        PagedMemory.apart(layout, tensors, [tensors[0], tensors[1][:2], *tensors[2:]])
    with pytest.raises(ValueError, match="float64"):
        PagedMemory.apart(layout, [tensor.double() for tensor in tensors], tensors)
    with pytest.raises(ValueError, match="contiguous"):
        PagedMemory.apart(layout, [torch.zeros(3, 2, 4, 8).transpose(1, 2)] * 4, tensors)
    with pytest.raises(ValueError, match="parts"):
        PagedMemory(layout, [tensors])
    with pytest.raises(ValueError, match="packed"):
        PagedMemory.packed(layout, [torch.zeros(3, 2, 4, 2, 8)] * 4)
