"""Does the attention kernel do here what torch does? A few kilobytes and milliseconds, before it is trusted."""

import logging
from array import array
from typing import Final

import torch

from services.engine.kv.paged_kv import PagedKV
from services.engine.native.kernels import Kernels
from services.engine.native.paged import serves
from services.engine.native.structs import ChunkAttention, DecodeAttention, Write

_log = logging.getLogger(__name__)

_BLOCK_SIZE, _HEADS, _GROUPS, _BLOCKS = 16, 2, 3, 9
_TABLE: Final = (4, 1, 5, 0, 7, 2, 8)
_FIRST_ROW, _LAST_ROW, _WINDOW = 20, 105, 70
"""Positions of the queries; some see what lies in one tile of the kernels, some in three."""
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
    """Whether a chunk, and its last row as a decode, over scattered blocks that the kernel wrote, are as torch's."""
    made = torch.Generator().manual_seed(0)
    rows, tokens = _LAST_ROW + 1 - _FIRST_ROW, len(_TABLE) * _BLOCK_SIZE
    key, value = (torch.randn((_HEADS, tokens, head_dim), generator=made).to(dtype) for _ in range(2))
    query = torch.randn((_HEADS, _GROUPS, rows, head_dim), generator=made).to(dtype)
    position = torch.arange(_FIRST_ROW, _LAST_ROW + 1).unsqueeze(1)
    token = torch.arange(tokens)
    hidden = (token > position) | (token <= position - _WINDOW)
    scores = query.double() @ key.double().unsqueeze(1).transpose(2, 3) * head_dim**-0.5
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
    expected = (weights @ value.double().unsqueeze(1)).flatten(0, 1).transpose(0, 1)
    chunk, decode = _attended(kernels, query.flatten(0, 1), key, value)
    bound = _TOLERANCE[dtype] * expected.abs().max()
    return bool((chunk - expected).abs().max() <= bound and (decode - expected[-1]).abs().max() <= bound)


def _attended(
    kernels: Kernels, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows as a chunk and the last as a decode, over a cache that holds NaN wherever nothing was written."""
    caches = _written(kernels, key, value)
    heads, rows, dim = query.shape
    table = array("q", _TABLE)
    chunk, decode = torch.empty((rows, heads, dim), dtype=query.dtype), torch.empty((heads, dim), dtype=query.dtype)
    place = _place(caches) | {"groups": _GROUPS, "query_row": dim, "query_head": rows * dim, "threads": 1}
    kernels.attend_chunk(
        ChunkAttention(
            query=query.data_ptr(),
            out=chunk.data_ptr(),
            table=table.buffer_info()[0],
            start=_FIRST_ROW,
            rows=rows,
            window=_WINDOW,
            scaling=dim**-0.5,
            **place,
        )
    )
    start, first, last = array("q", [0]), array("q", [_LAST_ROW + 1 - _WINDOW]), array("q", [_LAST_ROW])
    kernels.attend(
        DecodeAttention(
            query=query[:, -1].data_ptr(),
            out=decode.data_ptr(),
            tables=table.buffer_info()[0],
            table_starts=start.buffer_info()[0],
            first=first.buffer_info()[0],
            last=last.buffer_info()[0],
            sequences=1,
            scaling=dim**-0.5,
            **place,
        )
    )
    return chunk, decode


def _written(kernels: Kernels, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Caches of [blocks, block_size, heads, head_dim], with what comes after the last row left out."""
    shape = (_BLOCKS, _BLOCK_SIZE, _HEADS, key.shape[2])
    caches = torch.full(shape, torch.nan).to(key.dtype), torch.full(shape, torch.nan).to(key.dtype)
    slots = array("q", [block * _BLOCK_SIZE + offset for block in _TABLE for offset in range(_BLOCK_SIZE)])
    kernels.write(
        Write(
            key=key.data_ptr(),
            value=value.data_ptr(),
            slots=slots.buffer_info()[0],
            rows=_LAST_ROW + 1,
            key_row=key.stride(1),
            key_head=key.stride(0),
            value_row=value.stride(1),
            value_head=value.stride(0),
            **_place(caches),
        )
    )
    return caches


def _place(caches: tuple[torch.Tensor, torch.Tensor]) -> dict[str, int]:
    keys, values = caches
    dim = keys.shape[3]
    return {
        "keys": keys.data_ptr(),
        "values": values.data_ptr(),
        "heads": _HEADS,
        "dim": dim,
        "block_size": _BLOCK_SIZE,
        "block_stride": _BLOCK_SIZE * _HEADS * dim,
        "token_stride": _HEADS * dim,
        "head_stride": dim,
        "type": Kernels.type_code(keys.dtype),
    }
