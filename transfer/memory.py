"""The paged KV cache of one rank, as the transfer layer sees it."""

from collections.abc import Sequence

import torch

from common.kv.layout import KVDType, KVKind, KVLayout, KVOrder


def torch_dtype(dtype: KVDType) -> torch.dtype:
    """The element type as torch names it."""
    found = getattr(torch, dtype.value)
    assert isinstance(found, torch.dtype)
    return found


class PagedMemory:
    """A layout with addresses: for each layer of `layout.layers`, in order, one tensor for each part.

    A part's tensor has the shape [num_blocks, block_size, heads, head_dim] (NHD) or
    [num_blocks, heads, block_size, head_dim] (HND); a block of it is contiguous, blocks may lie apart.  The tensors
    stay the caller's; who may touch which block when is agreed by hand-offs.
    """

    def __init__(self, layout: KVLayout, parts: Sequence[Sequence[torch.Tensor]]) -> None:
        """`parts`: K of every layer, then V of every layer; of a latent cache the latents alone."""
        if len(parts) != layout.parts:
            raise ValueError(f"{len(parts)} parts; a cache of kind {layout.kind.value!r} has {layout.parts}")
        for name, tensors in zip(_part_names(layout), parts, strict=True):
            _check(layout, name, tensors, parts[0])
        self.layout = layout
        self.parts = tuple(tuple(tensors) for tensors in parts)
        self.num_blocks = int(self.parts[0][0].shape[0])

    @classmethod
    def apart(cls, layout: KVLayout, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> "PagedMemory":
        """K and V in tensors of their own."""
        return cls(layout, (keys, values))

    @classmethod
    def packed(cls, layout: KVLayout, tensors: Sequence[torch.Tensor]) -> "PagedMemory":
        """One tensor for each layer: [num_blocks, 2, …], K of a block and then its V."""
        if not layout.packed:
            raise ValueError("the layout says packed=False; tensors that hold both K and V need packed=True")
        return cls(layout, ([tensor[:, 0] for tensor in tensors], [tensor[:, 1] for tensor in tensors]))

    @classmethod
    def zeros(cls, layout: KVLayout, num_blocks: int) -> "PagedMemory":
        """A cache of its own, all zero."""
        shape, dtype = block_shape(layout), torch_dtype(layout.dtype)
        layers = range(len(layout.layers))
        if layout.packed:
            both = (num_blocks, 2, *shape)
            return cls.packed(layout, [torch.zeros(both, dtype=dtype, device=layout.device) for _ in layers])
        one = (num_blocks, *shape)
        return cls(
            layout,
            [[torch.zeros(one, dtype=dtype, device=layout.device) for _ in layers] for _ in range(layout.parts)],
        )

    def views(self) -> list[torch.Tensor]:
        """[num_blocks, block_size, heads, head_dim] for each layer and part (layer 0 part 0, layer 0 part 1, …)."""
        by_layer = [tensor for layer in zip(*self.parts, strict=True) for tensor in layer]
        return by_layer if self.layout.order is KVOrder.NHD else [tensor.transpose(1, 2) for tensor in by_layer]

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
    """The shape of one part of one block."""
    match layout.order:
        case KVOrder.NHD:
            return (layout.block_size, len(layout.heads), layout.head_dim)
        case KVOrder.HND:
            return (len(layout.heads), layout.block_size, layout.head_dim)


def _part_names(layout: KVLayout) -> tuple[str, ...]:
    return ("latents",) if layout.kind is KVKind.LATENT else ("keys", "values")


def _check(layout: KVLayout, name: str, tensors: Sequence[torch.Tensor], first_part: Sequence[torch.Tensor]) -> None:
    if len(tensors) != len(layout.layers) or not tensors:
        raise ValueError(f"{name} has {len(tensors)} tensors; the layout has {len(layout.layers)} layers")
    model = first_part[0]
    expected = (model.shape[0], *block_shape(layout))
    for index, tensor in enumerate(tensors):
        if tuple(tensor.shape) != expected or tensor.dtype != torch_dtype(layout.dtype):
            raise ValueError(
                f"{name}[{index}] is {tuple(tensor.shape)} of {tensor.dtype}; the layout says {expected} of "
                f"{layout.dtype.value}"
            )
        if not _has_contiguous_blocks(tensor) or tensor.stride() != model.stride():
            raise ValueError(
                f"{name}[{index}] has strides {tensor.stride()}; each block must be contiguous, and all alike"
            )


def _has_contiguous_blocks(tensor: torch.Tensor) -> bool:
    _, _, rows, dims = tensor.shape
    return tensor.stride()[1:] == (rows * dims, dims, 1)
