"""The paged KV cache of one rank: per layer one K and one V tensor of blocks, in either memory order."""

import math
import mmap
from collections.abc import Sequence

import torch

from common.errors import ConfigError
from common.kv.layout import KVDType, KVLayout, KVOrder

_TORCH_DTYPE = {
    KVDType.FLOAT32: torch.float32,
    KVDType.BFLOAT16: torch.bfloat16,
    KVDType.FLOAT16: torch.float16,
}


def torch_dtype(dtype: KVDType) -> torch.dtype:
    """The torch type of a cache element; raises ConfigError for the types that no engine computes in."""
    if dtype not in _TORCH_DTYPE:
        raise ConfigError(
            f"a KV cache of dtype {dtype.value!r}; this engine keeps KV in one of "
            f"{', '.join(known.value for known in _TORCH_DTYPE)}"
        )
    return _TORCH_DTYPE[dtype]


def num_blocks_for(layout: KVLayout, budget_bytes: int) -> int:
    """Blocks of `layout` that fit `budget_bytes`; raises ConfigError when not even one does."""
    block_bytes = layout.block_size * layout.token_bytes
    num_blocks = budget_bytes // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"kv_memory of {budget_bytes!r} bytes holds no block: one block of {layout.block_size} tokens takes "
            f"{block_bytes} bytes; raise kv_memory or lower block_size"
        )
    return num_blocks


class PagedKV:
    """`keys[i]` and `values[i]` hold layer `layout.layers.start + i`, each of shape [num_blocks, *block].

    A block is [block_size, heads, head_dim] (NHD) or [heads, block_size, head_dim] (HND). The tensors live as long
    as this object and never move, so a transfer may read and write them directly. They start as zeros; on the CPU a
    block takes physical memory from its first write on.

    Two kinds of index, computed once for all layers of a step, keep the order out of every caller:
    `token_rows` addresses single tokens (to write), `context_rows` whole blocks (to gather).
    """

    def __init__(self, layout: KVLayout, num_blocks: int) -> None:
        if layout.packed:
            raise ConfigError("a packed KV layout; this cache keeps K and V in tensors of their own")
        self.layout = layout
        self.num_blocks = num_blocks
        self.dtype = torch_dtype(layout.dtype)
        self.device = torch.device(layout.device)
        self._heads = len(layout.heads)
        self.keys = self._tensors()
        self.values = self._tensors()

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        size, heads, dim = self.layout.block_size, self._heads, self.layout.head_dim
        block = (size, heads, dim) if self.layout.order is KVOrder.NHD else (heads, size, dim)
        return tuple(_zeros((self.num_blocks, *block), self.dtype, self.device) for _ in range(len(self.layout.layers)))

    def token_rows(self, slots: Sequence[int]) -> torch.Tensor:
        """Index of these slots for `write` and `clear`, on the cache's device."""
        index = torch.tensor(slots, dtype=torch.int64, device=self.device)
        if self.layout.order is KVOrder.NHD:
            return index
        size = self.layout.block_size
        block, offset = index // size, index % size
        head = torch.arange(self._heads, device=self.device).unsqueeze(1)
        return ((block * self._heads + head) * size + offset).view(-1)

    def context_rows(self, tables: Sequence[Sequence[int]]) -> torch.Tensor:
        """Index of these block tables, all of one length, for `gather`, on the cache's device."""
        blocks = torch.tensor(tables, dtype=torch.int64, device=self.device)
        head = torch.arange(self._heads, device=self.device).view(-1, 1)
        if self.layout.order is KVOrder.HND:
            return (blocks.unsqueeze(1) * self._heads + head).view(-1)
        token = torch.arange(self.layout.block_size, device=self.device)
        slots = (blocks.unsqueeze(2) * self.layout.block_size + token).view(len(tables), 1, -1)
        return (slots * self._heads + head).view(-1)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor, token_rows: torch.Tensor) -> None:
        """Store `key` and `value`, each [heads, tokens, head_dim], in the slots behind `token_rows`."""
        for cache, source in ((self.keys, key), (self.values, value)):
            if self.layout.order is KVOrder.NHD:
                source = source.transpose(0, 1)
            rows = self._token_view(cache[layer - self.layout.layers.start])
            rows.index_copy_(0, token_rows, source.reshape(-1, rows.shape[1]))

    def clear(self, layer: int, token_rows: torch.Tensor) -> None:
        """Zero the slots behind `token_rows`."""
        for cache in (self.keys, self.values):
            self._token_view(cache[layer - self.layout.layers.start]).index_fill_(0, token_rows, 0)

    def gather(self, layer: int, context_rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Copy whole blocks into `key` and `value`, contiguous, each [tables, heads, blocks · block_size, head_dim]."""
        rows = len(context_rows)
        for cache, target in ((self.keys, key), (self.values, value)):
            source = cache[layer - self.layout.layers.start].view(-1, target.numel() // rows)
            torch.index_select(source, 0, context_rows, out=target.view(rows, -1))

    def copy_block(self, source: int, target: int) -> None:
        """Copy every layer of one block."""
        for cache in (*self.keys, *self.values):
            cache[target].copy_(cache[source])

    def _token_view(self, cache: torch.Tensor) -> torch.Tensor:
        """One row for each token (NHD), or for each token of each head (HND)."""
        if self.layout.order is KVOrder.NHD:
            return cache.view(-1, self._heads * self.layout.head_dim)
        return cache.view(-1, self.layout.head_dim)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.zeros`; on the CPU out of fresh pages of the kernel, which are zeros without being touched."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes every page: half a second of start-up for a GiB, all of it resident from then on.
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # The tensor keeps the mapping alive, and the mapping ends with it.
    return torch.frombuffer(pages, dtype=dtype).view(shape)
