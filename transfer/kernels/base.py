"""What a kernel does: one pass of gather + cast, or cast + scatter, between paged cache and staging memory."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder

QUIET_NAN: Mapping[KVDType, int] = MappingProxyType(
    {
        KVDType.FLOAT32: 0x7FC00000,
        KVDType.BFLOAT16: 0x7FC0,
        KVDType.FLOAT16: 0x7E00,
        KVDType.FLOAT8_E4M3FN: 0x7F,
        KVDType.FLOAT8_E4M3FNUZ: 0x80,
    }
)
"""The bits of the NaN that a cast to the type gives."""


@dataclass(frozen=True)
class CopySpec:
    """One hand-off's cache as kernels see it. Nothing in it changes while it is bound."""

    views: tuple[torch.Tensor, ...]
    """For each layer and part that moves (layer by layer): [num_blocks, block_size, heads, head_dim], cut to the heads
    that move. All have the same device, dtype, shape and strides; head_dim is contiguous."""
    blocks: tuple[int, ...]
    """Token t is in block `blocks[t // block_size]`, slot `t % block_size`."""
    cache_dtype: KVDType
    wire_dtype: KVDType
    wire_order: KVOrder
    """NHD: [tokens, heads, head_dim] for each view; HND: [heads, tokens, head_dim]."""
    cache_scales: torch.Tensor | None = None
    """float32 [views, heads] on the CPU: value = stored · scale. None: ones."""
    wire_scales: torch.Tensor | None = None

    @property
    def converts(self) -> bool:
        """Whether elements change; otherwise bytes are moved as they are."""
        return self.cache_dtype is not self.wire_dtype or not _equal(self.cache_scales, self.wire_scales)

    @property
    def part_token_bytes(self) -> int:
        """Bytes on the wire of one token of one view."""
        _, _, heads, dims = self.views[0].shape
        return int(heads * dims) * self.wire_dtype.size_bytes


class BoundCopy(ABC):
    """A kernel and a CopySpec. Blocks its thread; may be used by several threads on disjoint tokens or views.

    Where elements change, each is computed as `cast(clamp(float32(x) · scale_from / scale_to))`: the multiplication
    and the division are left out where the scale is None, the clamp is to ± the largest finite value of the type
    cast to, the cast rounds to nearest even, and NaN becomes `QUIET_NAN`, whatever its sign and payload were (casts of
    different CPUs and libraries keep different bits of it).  Every kernel gives the same bits.  Where nothing
    changes, bytes are moved, NaN included.
    """

    @abstractmethod
    def gather(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        """Fill `staging` from the cache, view after view; returns how many elements were clamped.

        `staging` is exactly len(views) · len(tokens) · part_token_bytes writable bytes, wherever they start.
        """

    @abstractmethod
    def scatter(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        """Fill the cache from `staging`; returns how many elements were clamped. Nothing else is written."""


class Kernel(ABC):
    """One way to do it."""

    name: str

    @abstractmethod
    def bind(self, spec: CopySpec) -> BoundCopy:
        """Prepare what does not depend on the segment; done once for each hand-off."""


def check_staging(spec: CopySpec, views: Interval, tokens: Interval, staging: memoryview) -> None:
    """Raises ValueError unless the arguments of gather and scatter fit each other and the spec."""
    size = len(views) * len(tokens) * spec.part_token_bytes
    block_size = spec.views[0].shape[1]
    if views.stop > len(spec.views) or tokens.stop > len(spec.blocks) * block_size or staging.nbytes != size:
        raise ValueError(
            f"views {views!r} and tokens {tokens!r} need {size} bytes, not {staging.nbytes}; there are "
            f"{len(spec.views)} views and {len(spec.blocks) * block_size} tokens"
        )


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def scales_tensor(scales: bytes | None, layers: int, parts: int, heads: int) -> torch.Tensor | None:
    """`KVLayout.scales` as float32 [layers · parts, heads]."""
    if scales is None:
        return None
    values = torch.frombuffer(bytearray(scales), dtype=torch.float32)
    return values.view(layers * parts, heads)


def blocks_tensor(blocks: Sequence[int], device: torch.device) -> torch.Tensor:
    """Block numbers as int64 where the kernel runs."""
    return torch.tensor(blocks, dtype=torch.int64, device=device)
