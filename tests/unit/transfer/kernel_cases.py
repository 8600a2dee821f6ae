"""Caches, blocks and ranges of every sort for the tests of kernels."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from tests.unit.transfer.kernel_reference import INT
from transfer.kernels.base import CopySpec
from transfer.memory import torch_dtype

_FLOAT32 = [0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7F800001]
_BFLOAT16 = [bits >> 16 for bits in _FLOAT32] + [0x0001, 0x7F7F, 0xFF7F, 0x7F81]
_FLOAT16 = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0xFE00]
_FLOAT8 = [0x00, 0x80, 0x01, 0x81, 0x07, 0x08, 0x7E, 0x7F, 0xFE, 0xFF]
SPECIAL = {
    KVDType.FLOAT32: [*_FLOAT32, 0x477FE000, 0x477FE001, 0x43E00001, 0x43700001, 0x7F7FFFFF, 0x7F7F8000, 0x33000000],
    KVDType.BFLOAT16: _BFLOAT16,
    KVDType.FLOAT16: _FLOAT16,
    KVDType.FLOAT8_E4M3FN: _FLOAT8,
    KVDType.FLOAT8_E4M3FNUZ: _FLOAT8,
}
"""Zeros, denormals, infinities, NaN, the largest values of every type and just above."""


@dataclass(frozen=True)
class Cache:
    """Where the views lie in one run of memory; all in elements."""

    dtype: KVDType
    order: KVOrder
    num_views: int
    num_blocks: int
    block_size: int
    all_heads: int
    heads: Interval
    dims: int
    packed: bool = False
    gap: int = 0
    """Between blocks."""

    @property
    def part(self) -> int:
        return self.block_size * self.all_heads * self.dims

    @property
    def block_stride(self) -> int:
        return self.part * (2 if self.packed else 1) + self.gap

    @property
    def size(self) -> int:
        tensors = -(-self.num_views // 2) if self.packed else self.num_views
        return tensors * self.num_blocks * self.block_stride

    def views(self, pool: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tensor, heads = self.num_blocks * self.block_stride, self.all_heads
        row, column = (heads * self.dims, self.dims) if self.order is KVOrder.NHD else (self.dims, self._head_rows())
        made = []
        for index in range(self.num_views):
            offset = index // 2 * tensor + index % 2 * self.part if self.packed else index * tensor
            view = pool.as_strided(
                (self.num_blocks, self.block_size, heads, self.dims), (self.block_stride, row, column, 1), offset
            )
            made.append(view[:, :, self.heads.start : self.heads.stop].view(torch_dtype(self.dtype)))
        return tuple(made)

    def _head_rows(self) -> int:
        return self.block_size * self.dims


@dataclass(frozen=True)
class Case:
    """One call of gather or scatter."""

    cache: Cache
    blocks: tuple[int, ...]
    wire_dtype: KVDType
    wire_order: KVOrder
    cache_scales: torch.Tensor | None
    wire_scales: torch.Tensor | None
    views: Interval
    tokens: Interval
    skew: int = 0
    """Where staging starts, in bytes from an aligned address."""
    seed: int = 0

    @property
    def wire_elements(self) -> int:
        return len(self.views) * len(self.tokens) * len(self.cache.heads) * self.cache.dims

    def pool(self) -> torch.Tensor:
        """All memory of the cache, as integers; the same at each call."""
        return random_bits(self.cache.size, self.cache.dtype, self.seed)

    def wire(self) -> bytes:
        """Something to scatter."""
        return random_bits(self.wire_elements, self.wire_dtype, self.seed + 1).numpy().tobytes()

    def spec(self, pool: torch.Tensor) -> CopySpec:
        return CopySpec(
            self.cache.views(pool),
            self.blocks,
            self.cache.dtype,
            self.wire_dtype,
            self.wire_order,
            self.cache_scales,
            self.wire_scales,
        )


def random_bits(count: int, dtype: KVDType, seed: int) -> torch.Tensor:
    """Elements as integers: common values, any bits at all, and special ones."""
    generator = torch.Generator().manual_seed(seed)
    kind = INT[dtype.size_bytes]
    common = torch.randn(count, generator=generator).mul_(100).to(torch_dtype(dtype)).view(kind)
    anything = torch.randint(0, 256, (count * dtype.size_bytes,), generator=generator, dtype=torch.uint8).view(kind)
    unsigned = torch.tensor(SPECIAL[dtype], dtype=torch.int64)
    special = unsigned[torch.randint(0, len(unsigned), (count,), generator=generator)].to(kind)
    which = torch.randint(0, 3, (count,), generator=generator)
    return torch.where(which == 0, common, torch.where(which == 1, anything, special))


def _scales(num_views: int, heads: int) -> st.SearchStrategy[torch.Tensor | None]:
    values = st.sampled_from([1.0, 0.5, 3.0, 0.0078125, 1e-3, 771.25, 1e30, 1e-38, 1e-42])
    rows = st.lists(values, min_size=num_views * heads, max_size=num_views * heads)
    return st.none() | rows.map(lambda row: torch.tensor(row, dtype=torch.float32).view(num_views, heads))


@st.composite
def _ranges(draw: st.DrawFn, length: int) -> Interval:
    start = draw(st.integers(0, length - 1))
    return Interval(start, draw(st.integers(start, length)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small, so that an element at a time is soon done; every axis at once."""
    block_size = draw(st.sampled_from([1, 2, 3, 5, 16, 64, 127, 128]) | st.integers(1, 128))
    all_heads, num_blocks = draw(st.integers(1, 3)), draw(st.integers(1, 5 if block_size > 20 else 9))
    first = draw(st.integers(0, all_heads - 1))
    heads = Interval(first, draw(st.integers(first + 1, all_heads)))
    num_views = draw(st.integers(1, 3))
    cache = Cache(
        dtype=draw(st.sampled_from(list(KVDType))),
        order=draw(st.sampled_from(list(KVOrder))),
        num_views=num_views,
        num_blocks=num_blocks,
        block_size=block_size,
        all_heads=all_heads,
        heads=heads,
        dims=draw(st.integers(1, 6) | st.just(33)),
        packed=draw(st.booleans()),
        gap=draw(st.sampled_from([0, 0, 5])),
    )
    in_order = draw(st.booleans())
    blocks = tuple(range(num_blocks) if in_order else draw(st.permutations(range(num_blocks))))
    blocks = blocks[draw(st.integers(0, num_blocks - 1)) :]
    tokens = draw(_ranges(len(blocks) * block_size))
    longest = max(1, 600 // (len(heads) * cache.dims))
    return Case(
        cache=cache,
        blocks=blocks,
        wire_dtype=draw(st.just(cache.dtype) | st.sampled_from(list(KVDType))),
        wire_order=draw(st.sampled_from(list(KVOrder))),
        cache_scales=draw(_scales(num_views, len(heads))),
        wire_scales=draw(_scales(num_views, len(heads))),
        views=draw(_ranges(num_views)),
        tokens=Interval(tokens.start, min(tokens.stop, tokens.start + longest)),
        skew=draw(st.integers(0, 70)),
        seed=draw(st.integers(0, 2**20)),
    )
