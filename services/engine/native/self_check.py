"""Does the attention kernel do here what torch does? A few kilobytes and milliseconds, before it is trusted."""

import logging
from array import array
from typing import Final

import torch

from services.engine.native.kernels import DecodeAttention, Kernels, Write
from services.engine.native.paged import serves
from services.engine.paged_kv import PagedKV

_log = logging.getLogger(__name__)

_BLOCK_SIZE, _HEADS, _GROUPS, _BLOCKS = 16, 2, 3, 6
_TABLE: Final = (4, 1, 5, 0)
_FIRST, _LAST = 3, 58
_TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def trusted(kernels: Kernels | None, kv: PagedKV) -> Kernels | None:
    """`kernels` where they serve `kv` and agree with torch, else None."""
    if kernels is None or not serves(kv):
        return None
    if not attention_agrees(kernels, kv.dtype, kv.layout.head_dim):
        _log.error("the C++ kernels do not agree with torch on this machine: torch computes all. Please report this.")
        return None
    return kernels


def attention_agrees(kernels: Kernels, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether one decode over scattered blocks, written by the kernel too, gives torch's answer within rounding."""
    made = torch.Generator().manual_seed(0)
    tokens = len(_TABLE) * _BLOCK_SIZE
    key, value = (torch.randn((_HEADS, tokens, head_dim), generator=made).to(dtype) for _ in range(2))
    query = torch.randn((_HEADS * _GROUPS, 1, head_dim), generator=made).to(dtype)
    actual = _attended(kernels, query, key, value)
    seen = slice(_FIRST, _LAST + 1)
    wide = query.double().view(_HEADS, _GROUPS, head_dim)
    weights = torch.softmax(wide @ key[:, seen].double().transpose(1, 2) * head_dim**-0.5, -1)
    expected = (weights @ value[:, seen].double()).view(actual.shape)
    return bool((actual.double() - expected).abs().max() <= _TOLERANCE[dtype] * expected.abs().max())


def _attended(kernels: Kernels, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One row, over a cache of [blocks, block_size, heads, head_dim] that holds NaN wherever nothing was written."""
    dim = query.shape[2]
    caches = [torch.full((_BLOCKS, _BLOCK_SIZE, _HEADS, dim), torch.nan).to(query.dtype) for _ in range(2)]
    place = {
        "keys": caches[0].data_ptr(),
        "values": caches[1].data_ptr(),
        "heads": _HEADS,
        "dim": dim,
        "block_size": _BLOCK_SIZE,
        "block_stride": _BLOCK_SIZE * _HEADS * dim,
        "token_stride": _HEADS * dim,
        "head_stride": dim,
        "type": Kernels.type_code(query.dtype),
    }
    slots = array("q", [block * _BLOCK_SIZE + offset for block in _TABLE for offset in range(_BLOCK_SIZE)])
    strides = {"key_row": dim, "key_head": key.stride(0), "value_row": dim, "value_head": value.stride(0)}
    kernels.write(
        Write(
            key=key.data_ptr(),
            value=value.data_ptr(),
            slots=slots.buffer_info()[0],
            rows=len(slots),
            **strides,
            **place,
        )
    )
    table, start, first, last = array("q", _TABLE), array("q", [0]), array("q", [_FIRST]), array("q", [_LAST])
    out = torch.empty((1, query.shape[0], dim), dtype=query.dtype)
    kernels.attend(
        DecodeAttention(
            query=query.data_ptr(),
            out=out.data_ptr(),
            tables=table.buffer_info()[0],
            table_starts=start.buffer_info()[0],
            first=first.buffer_info()[0],
            last=last.buffer_info()[0],
            sequences=1,
            groups=_GROUPS,
            query_row=dim,
            query_head=dim,
            threads=1,
            scaling=dim**-0.5,
            **place,
        )
    )
    return out
