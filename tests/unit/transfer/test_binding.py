import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from transfer.binding import Binding
from transfer.memory import PagedMemory, torch_dtype
from transfer.plan import plan_copy
from transfer.rectangles import Rectangle
from transfer.testing import example_layout, kv_of_token, random_memory

layouts = st.builds(
    KVLayout,
    model=st.just("m"),
    dtype=st.sampled_from(list(KVDType)),
    block_size=st.integers(1, 9),
    order=st.sampled_from(list(KVOrder)),
    layers=st.integers(1, 3).map(lambda count: Interval(1, 1 + count)),
    heads=st.integers(1, 3).map(lambda count: Interval(0, count)),
    head_dim=st.integers(1, 6),
)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Equality of bytes: NaN is equal to itself here."""
    return tensor.contiguous().flatten().view(torch.uint8)


@given(layout=layouts, num_tokens=st.integers(1, 25), data=st.data())
def test_pack_and_unpack_against_one_token_at_a_time(layout: KVLayout, num_tokens: int, data: st.DataObject) -> None:
    count = layout.blocks_for(num_tokens)
    given_blocks = data.draw(st.permutations(range(count + 2)))[:count]
    taken_blocks = data.draw(st.permutations(range(count + 2)))[:count]
    t0 = data.draw(st.integers(0, num_tokens - 1))
    part = Rectangle(layout.layers, Interval(t0, data.draw(st.integers(t0 + 1, num_tokens))))
    source, target = random_memory(layout, count + 2), PagedMemory.zeros(layout, count + 2)
    plan = plan_copy(layout, layout)
    staging = bytearray(part.area * plan.token_bytes_per_layer + 3)

    Binding(plan, source, given_blocks, num_tokens).pack(part, staging)
    wire = torch.frombuffer(staging[:-3], dtype=torch.uint8).view(torch_dtype(layout.dtype))
    wire = wire.view(len(layout.layers), 2, len(part.tokens), len(layout.heads), layout.head_dim)
    Binding(plan, target, taken_blocks, num_tokens).unpack(part, staging)

    for token in range(num_tokens):
        block, slot = divmod(token, layout.block_size)
        there = kv_of_token(target, taken_blocks[block], slot)
        wanted = kv_of_token(source, given_blocks[block], slot)
        if token in part.tokens:
            assert torch.equal(bits(wire[:, :, token - t0]), bits(wanted))
            assert torch.equal(bits(there), bits(wanted))
        else:
            assert not bits(there).any()
    assert staging[-3:] == bytes(3)


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
    assert PagedMemory(layout, tensors, tensors).num_blocks == 3
    with pytest.raises(ValueError, match="4 layers"):
        PagedMemory(layout, tensors[:3], tensors)
    with pytest.raises(ValueError, match=r"values\[1\]"):
        PagedMemory(layout, tensors, [tensors[0], tensors[1][:2], *tensors[2:]])
    with pytest.raises(ValueError, match="float64"):
        PagedMemory(layout, [tensor.double() for tensor in tensors], tensors)
    with pytest.raises(ValueError, match="contiguous"):
        PagedMemory(layout, [torch.zeros(4, 3, 2, 8).transpose(0, 1)] * 4, tensors)
    with pytest.raises(ValueError, match="packed"):
        PagedMemory(msgspec.structs.replace(layout, packed=True), tensors, tensors)
