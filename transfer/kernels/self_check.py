"""Does a kernel do here what torch does? A few kilobytes and milliseconds, before it is trusted with a cache."""

from collections.abc import Sequence

import torch

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from transfer.kernels.base import CopySpec, Kernel
from transfer.kernels.torch_kernel import TorchKernel
from transfer.memory import torch_dtype

PAIRS = tuple((have, want) for have in KVDType for want in KVDType)
"""Cache and wire types: all of them."""

_BLOCKS, _BLOCK_SIZE, _HEADS, _DIMS = (2, 0, 1), 5, 3, 40
_TOKENS = Interval(1, 13)


def agrees_with_torch(kernel: Kernel, device: torch.device, pairs: Sequence[tuple[KVDType, KVDType]] = PAIRS) -> bool:
    """Whether it gathers and scatters the same bits and counts, for these pairs of types."""
    return all(_agrees(kernel, device, have, want) for have, want in pairs)


def _agrees(kernel: Kernel, device: torch.device, have: KVDType, want: KVDType) -> bool:
    order = KVOrder.NHD if have.size_bytes > want.size_bytes else KVOrder.HND
    results = []
    for candidate in (TorchKernel(), kernel):
        view = _values(have, device)
        bound = candidate.bind(CopySpec((view,), _BLOCKS, have, want, order, cache_scales=_scales(have)))
        staging = bytearray(len(_TOKENS) * _HEADS * _DIMS * want.size_bytes)
        counts = [bound.gather(Interval(0, 1), _TOKENS, memoryview(staging))]
        wire = bytes(staging)
        staging.reverse()  # other values, most of them from the ends of the range
        counts.append(bound.scatter(Interval(0, 1), _TOKENS, memoryview(staging)))
        results.append((counts, wire, view.cpu().contiguous().view(torch.uint8).numpy().tobytes()))
    return results[0] == results[1]


def _values(dtype: KVDType, device: torch.device) -> torch.Tensor:
    """[blocks, block_size, heads, dims] that reach over the largest value of the narrower types; NaN among them."""
    size = len(_BLOCKS) * _BLOCK_SIZE * _HEADS * _DIMS
    values = torch.linspace(-30.0, 30.0, size).exp2() * torch.tensor([1.0, -1.0]).repeat(size // 2)
    values[::97] = torch.nan
    return values.to(torch_dtype(dtype)).view(len(_BLOCKS), _BLOCK_SIZE, _HEADS, _DIMS).to(device)


def _scales(dtype: KVDType) -> torch.Tensor | None:
    if dtype.size_bytes > 1:
        return None
    return torch.tensor([[0.75, 1.5, 3.25]])
