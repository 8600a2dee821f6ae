"""Gather and scatter with torch: the path that works on every device, and the oracle of faster ones."""

import torch

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from transfer.kernels.base import QUIET_NAN, BoundCopy, CopySpec, Kernel, blocks_tensor, check_staging
from transfer.memory import torch_dtype

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Elements are moved as integers: torch has no index_select for every float type."""


class TorchKernel(Kernel):
    """Any device torch has."""

    name = "torch"

    def bind(self, spec: CopySpec) -> BoundCopy:
        """See Kernel.bind."""
        return _TorchCopy(spec)


class _TorchCopy(BoundCopy):
    def __init__(self, spec: CopySpec) -> None:
        self._spec = spec
        self._bits = [view.view(_BITS[view.element_size()]) for view in spec.views]
        self._blocks = blocks_tensor(spec.blocks, spec.views[0].device)
        _, self._block_size, self._heads, self._dims = spec.views[0].shape

    def gather(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        check_staging(self._spec, views, tokens, staging)
        if staging.nbytes == 0:
            return 0
        wire = self._wire(views, tokens, staging)
        clamped = 0
        for row, index in enumerate(range(views.start, views.stop)):
            elements, count = self._cast(self._read(index, tokens), index, to_wire=True)
            wire[row].copy_(elements)
            clamped += count
        return clamped

    def scatter(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        check_staging(self._spec, views, tokens, staging)
        if staging.nbytes == 0:
            return 0
        wire = self._wire(views, tokens, staging)
        clamped = 0
        for row, index in enumerate(range(views.start, views.stop)):
            elements, count = self._cast(wire[row].to(self._blocks.device), index, to_wire=False)
            self._write(index, tokens, elements)
            clamped += count
        return clamped

    def _wire(self, views: Interval, tokens: Interval, staging: memoryview) -> torch.Tensor:
        """[views, tokens, heads, head_dim], as integers, of whatever order the bytes are in."""
        flat = torch.frombuffer(staging, dtype=torch.uint8).view(_BITS[self._spec.wire_dtype.size_bytes])
        match self._spec.wire_order:
            case KVOrder.NHD:
                return flat.view(len(views), len(tokens), self._heads, self._dims)
            case KVOrder.HND:
                return flat.view(len(views), self._heads, len(tokens), self._dims).transpose(1, 2)

    def _read(self, index: int, tokens: Interval) -> torch.Tensor:
        size = self._block_size
        first = tokens.start // size
        blocks = self._blocks[first : -(-tokens.stop // size)]
        whole = self._bits[index].index_select(0, blocks).reshape(-1, self._heads, self._dims)
        return whole[tokens.start - first * size : tokens.stop - first * size]

    def _write(self, index: int, tokens: Interval, elements: torch.Tensor) -> None:
        """Whole blocks at once; the partial ones at both ends by slots."""
        size, cache, start = self._block_size, self._bits[index], tokens.start
        while start < tokens.stop:
            block, slot = divmod(start, size)
            num_whole = (tokens.stop - start) // size if slot == 0 else 0
            stop = start + num_whole * size if num_whole else min(tokens.stop, (block + 1) * size)
            piece = elements[start - tokens.start : stop - tokens.start]
            if num_whole:
                cache.index_copy_(
                    0, self._blocks[block : block + num_whole], piece.reshape(num_whole, size, self._heads, self._dims)
                )
            else:
                cache[self._blocks[block], slot : slot + stop - start] = piece
            start = stop

    def _cast(self, bits: torch.Tensor, index: int, *, to_wire: bool) -> tuple[torch.Tensor, int]:
        """Elements as integers of the other side's type, and how many were clamped."""
        spec = self._spec
        if not spec.converts:
            return bits, 0
        ends = ((spec.cache_dtype, spec.cache_scales), (spec.wire_dtype, spec.wire_scales))
        (have, scale_have), (want, scale_want) = ends if to_wire else (ends[1], ends[0])
        values = bits.contiguous().view(torch_dtype(have)).to(torch.float32)
        if scale_have is not None:
            values = values * _per_head(scale_have[index], values)
        if scale_want is not None:
            values = values / _per_head(scale_want[index], values)
        return _narrow(values, want)


def _per_head(scales: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return scales.to(like.device)[:, None]


def _narrow(values: torch.Tensor, dtype: KVDType) -> tuple[torch.Tensor, int]:
    beyond = int(torch.count_nonzero(values.abs() > dtype.largest))
    cast = values.clamp(-dtype.largest, dtype.largest).to(torch_dtype(dtype))
    bits = cast.view(_BITS[dtype.size_bytes])
    # Torch's own casts of NaN differ with the length of a row: 0x7FC0 or 0xFFFF in bfloat16.
    return bits.masked_fill_(values.isnan(), QUIET_NAN[dtype]), beyond
