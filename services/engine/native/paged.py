"""Writing and attending paged KV with the C++ kernels: what one step prepares once for all its layers."""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from common.kv.layout import KVOrder
from services.engine.kv.paged_kv import PagedKV
from services.engine.native.kernels import ATTENTION_DIMS, Kernels
from services.engine.native.structs import ChunkAttention, DecodeAttention, Write
from services.engine.step_plan import Chunk, DecodeGroup

if TYPE_CHECKING:
    from services.engine.model.attention import AttentionCall


def serves(kv: PagedKV) -> bool:
    """Whether the kernels can read and write this cache."""
    return Kernels.serves(kv.dtype, kv.device) and kv.layout.head_dim in ATTENTION_DIMS


class NativeWrites:
    """Stores the rows of a step in their slots."""

    def __init__(self, kernels: Kernels, kv: PagedKV, slots: Sequence[int]) -> None:
        self._kernels = kernels
        check_range("slot", slots, kv.num_blocks * kv.layout.block_size)
        self._slots = array("q", slots)
        self._call = Write(slots=address_of(self._slots), rows=len(slots), **geometry(kv))

    def write(self, kv: PagedKV, call: "AttentionCall") -> None:
        """`call.key` and `call.value`, each [heads, tokens, head_dim]."""
        index = call.layer - kv.layout.layers.start
        key, value = _dense(call.key), _dense(call.value)
        own = self._call
        own.key, own.value = key.data_ptr(), value.data_ptr()
        own.keys, own.values = kv.keys[index].data_ptr(), kv.values[index].data_ptr()
        own.key_head, own.key_row = key.stride()[:2]
        own.value_head, own.value_row = value.stride()[:2]
        self._kernels.write(own)


class Contexts:
    """Where the context of every decode of a step lies: arrays that C++ reads."""

    def __init__(self, kv: PagedKV, groups: Sequence[DecodeGroup]) -> None:
        """Raises ValueError for a block that the cache does not have."""
        size = kv.layout.block_size
        self.positions = array("q", [position for group in groups for position in group.positions])
        self.tables = array("q")
        starts = []
        for table, position in zip((table for group in groups for table in group.blocks), self.positions, strict=True):
            starts.append(len(self.tables))
            self.tables.extend(table[: position // size + 1])
        check_range("block", self.tables, kv.num_blocks)
        self.starts = array("q", starts)


class NativeDecodes:
    """All decodes of a step, whatever their lengths; their rows are the first of the step. Reads no slot unseen."""

    def __init__(self, kernels: Kernels, kv: PagedKV, groups: Sequence[DecodeGroup], window: int | None) -> None:
        self._kernels = kernels
        self._contexts = Contexts(kv, groups)
        positions = self._contexts.positions
        self._first = array("q", [0 if window is None else max(0, position + 1 - window) for position in positions])
        self._rows = len(positions)
        self._call = DecodeAttention(
            tables=address_of(self._contexts.tables),
            table_starts=address_of(self._contexts.starts),
            first=address_of(self._first),
            last=address_of(positions),
            sequences=self._rows,
            threads=torch.get_num_threads(),
            **geometry(kv),
        )

    def attend(self, kv: PagedKV, call: "AttentionCall") -> torch.Tensor:
        """[decodes, query heads, head_dim]"""
        query = _dense(call.query)
        out = torch.empty((self._rows, query.shape[0], query.shape[2]), dtype=query.dtype)
        index = call.layer - kv.layout.layers.start
        own = self._call
        own.keys, own.values = kv.keys[index].data_ptr(), kv.values[index].data_ptr()
        own.query, own.out = query.data_ptr(), out.data_ptr()
        own.query_head, own.query_row = query.stride()[:2]
        own.groups = query.shape[0] // own.heads
        own.scaling = call.scaling
        self._kernels.attend(own)
        return out


class NativeChunk:
    """One chunk of a sequence, for one window. Reads no slot unseen."""

    def __init__(self, kernels: Kernels, kv: PagedKV, chunk: Chunk, window: int | None) -> None:
        self._kernels = kernels
        self._table = array("q", chunk.blocks[: -(-chunk.stop // kv.layout.block_size)])
        check_range("block", self._table, kv.num_blocks)
        self._rows = slice(chunk.first_row, chunk.first_row + chunk.stop - chunk.start)
        self._call = ChunkAttention(
            table=address_of(self._table),
            start=chunk.start,
            rows=chunk.stop - chunk.start,
            window=window or 0,
            threads=torch.get_num_threads(),
            **geometry(kv),
        )

    def attend(self, kv: PagedKV, call: "AttentionCall") -> torch.Tensor:
        """[tokens of the chunk, query heads, head_dim]"""
        query = _dense(call.query[:, self._rows])
        out = torch.empty((query.shape[1], query.shape[0], query.shape[2]), dtype=query.dtype)
        index = call.layer - kv.layout.layers.start
        own = self._call
        own.keys, own.values = kv.keys[index].data_ptr(), kv.values[index].data_ptr()
        own.query, own.out = query.data_ptr(), out.data_ptr()
        own.query_head, own.query_row = query.stride()[:2]
        own.groups = query.shape[0] // own.heads
        own.scaling = call.scaling
        self._kernels.attend_chunk(own)
        return out


def geometry(kv: PagedKV) -> dict[str, int]:
    """Sizes and strides of one layer's cache, in elements; strides and sizes that both calls have."""
    size, heads, dim = kv.layout.block_size, len(kv.layout.heads), kv.layout.head_dim
    by_token = kv.layout.order is KVOrder.NHD
    return {
        "heads": heads,
        "dim": dim,
        "block_size": size,
        "block_stride": size * heads * dim,
        "token_stride": heads * dim if by_token else dim,
        "head_stride": dim if by_token else size * dim,
        "type": Kernels.type_code(kv.dtype),
    }


def check_range(what: str, numbers: Sequence[int], bound: int) -> None:
    """Raise ValueError unless all `numbers` are in [0, bound). The C++ side trusts them: an error is a wild write."""
    if numbers and not 0 <= min(numbers) <= max(numbers) < bound:
        raise ValueError(f"{what}s must be in [0, {bound}), not {min(numbers)} … {max(numbers)}")


def address_of(numbers: "array[int]") -> int:
    """Good until `numbers` is changed or gone."""
    return numbers.buffer_info()[0]


def _dense(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()
