"""The paged KV cache of one rank, as the transfer layer sees it."""

from collections.abc import Sequence

import torch

from common.kv.layout import KVDType, KVLayout, KVOrder


def torch_dtype(dtype: KVDType) -> torch.dtype:
    """The element type as torch names it."""
    found = getattr(torch, dtype.value)
    assert isinstance(found, torch.dtype)
    return found


class PagedMemory:
    """A layout with addresses: for each layer of `layout.layers`, in order, one tensor of K and one of V.

    Each has the shape [num_blocks, block_size, heads, head_dim] (NHD) or [num_blocks, heads, block_size, head_dim]
    (HND) and is contiguous. The tensors stay the caller's; who may touch which block when is agreed by hand-offs.
    """

    def __init__(self, layout: KVLayout, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        if layout.packed:
            raise ValueError("packed=True: K and V in one tensor cannot be moved yet; keep them apart")
        for name, tensors in (("keys", keys), ("values", values)):
            _check(layout, name, tensors)
        self.layout = layout
        self.keys = tuple(keys)
        self.values = tuple(values)
        self.num_blocks = int(self.keys[0].shape[0])

    @classmethod
    def zeros(cls, layout: KVLayout, num_blocks: int) -> "PagedMemory":
        """A cache of its own, all zero."""
        shape, dtype = (num_blocks, *block_shape(layout)), torch_dtype(layout.dtype)

        def tensors() -> list[torch.Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=layout.device) for _ in range(len(layout.layers))]

        return cls(layout, tensors(), tensors())

    def check_blocks(self, blocks: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        """The leading blocks that hold `num_tokens` tokens; raises ValueError if they cannot be those."""
        needed = self.layout.blocks_for(num_tokens)
        if num_tokens < 1 or len(blocks) < needed:
            raise ValueError(
                f"{num_tokens} tokens (at least 1) need {needed} blocks of {self.layout.block_size} tokens, "
                f"not {len(blocks)}"
            )
        used = tuple(blocks[:needed])
        if len(set(used)) != needed or not all(0 <= block < self.num_blocks for block in used):
            raise ValueError(f"blocks must be distinct and in [0, {self.num_blocks}), not {used!r}")
        return used


def block_shape(layout: KVLayout) -> tuple[int, int, int]:
    """The shape of K (and of V) of one block."""
    match layout.order:
        case KVOrder.NHD:
            return (layout.block_size, len(layout.heads), layout.head_dim)
        case KVOrder.HND:
            return (len(layout.heads), layout.block_size, layout.head_dim)


def _check(layout: KVLayout, name: str, tensors: Sequence[torch.Tensor]) -> None:
    if len(tensors) != len(layout.layers) or not tensors:
        raise ValueError(f"{name} has {len(tensors)} tensors; the layout has {len(layout.layers)} layers")
    expected = (tensors[0].shape[0], *block_shape(layout))
    for index, tensor in enumerate(tensors):
        if tuple(tensor.shape) != expected or tensor.dtype != torch_dtype(layout.dtype):
            raise ValueError(
                f"{name}[{index}] is {tuple(tensor.shape)} of {tensor.dtype}; the layout says {expected} of "
                f"{layout.dtype.value}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{name}[{index}] is not contiguous; pass a contiguous tensor for each layer")
