"""Writing and attending paged KV with the C++ kernels: what one step prepares once for all its layers."""

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from common.kv.layout import KVOrder
from services.engine.native.kernels import ATTENTION_DIMS, DecodeAttention, Kernels, Write
from services.engine.paged_kv import PagedKV
from services.engine.step_plan import DecodeGroup

if TYPE_CHECKING:
    from services.engine.attention import AttentionCall


def serves(kv: PagedKV) -> bool:
    """Whether the kernels can read and write this cache."""
    return Kernels.serves(kv.dtype, kv.device) and kv.layout.head_dim in ATTENTION_DIMS


class NativeWrites:
    """Stores the rows of a step in their slots."""

    def __init__(self, kernels: Kernels, kv: PagedKV, slots: Sequence[int]) -> None:
        self._kernels = kernels
        _check("slot", slots, kv.num_blocks * kv.layout.block_size)
        self._slots = array("q", slots)
        self._call = Write(slots=_address(self._slots), rows=len(slots), **_geometry(kv))

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


class NativeDecodes:
    """All decodes of a step, whatever their lengths; their rows are the first of the step. Reads no slot unseen."""

    def __init__(self, kernels: Kernels, kv: PagedKV, groups: Sequence[DecodeGroup], window: int | None) -> None:
        self._kernels = kernels
        size = kv.layout.block_size
        positions = [position for group in groups for position in group.positions]
        blocks = [table for group in groups for table in group.blocks]
        used = [position // size + 1 for position in positions]
        self._tables = array("q")
        for table, count in zip(blocks, used, strict=True):
            self._tables.extend(table[:count])
        _check("block", self._tables, kv.num_blocks)
        self._starts = array("q", accumulate(used[:-1], initial=0))
        self._first = array("q", [0 if window is None else max(0, position + 1 - window) for position in positions])
        self._last = array("q", positions)
        self._rows = len(positions)
        self._call = DecodeAttention(
            tables=_address(self._tables),
            table_starts=_address(self._starts),
            first=_address(self._first),
            last=_address(self._last),
            sequences=self._rows,
            threads=torch.get_num_threads(),
            **_geometry(kv),
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


def _geometry(kv: PagedKV) -> dict[str, int]:
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


def _check(what: str, numbers: Sequence[int], bound: int) -> None:
    # The C++ side trusts them: an error there is a wild write.
    if numbers and not 0 <= min(numbers) <= max(numbers) < bound:
        raise ValueError(f"{what}s must be in [0, {bound}), not {min(numbers)} … {max(numbers)}")


def _dense(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _address(numbers: "array[int]") -> int:
    return numbers.buffer_info()[0]
