"""A plan bound to memory: from rectangles of (layer, token) to bytes in a staging buffer, and back."""

from collections.abc import Callable, Sequence

import msgspec
import torch

from common.kv.intervals import Interval
from common.kv.layout import KVOrder
from transfer.kernels.rows import as_rows, gather_rows, scatter_rows
from transfer.memory import PagedMemory
from transfer.plan import CopyPlan
from transfer.rectangles import Rectangle


class Binding:
    """The blocks of one hand-off at one side. Its index tables are built once, here.

    `pack` and `unpack` block their thread for the copy; call them off the event loop.
    """

    def __init__(self, plan: CopyPlan, memory: PagedMemory, blocks: Sequence[int], num_tokens: int) -> None:
        self._first_layer = plan.layers.start
        self._token_bytes = plan.token_bytes_per_layer
        self._block_size = memory.layout.block_size
        self._by_token = _token_rows(memory, blocks, num_tokens)
        self._by_block = _block_rows(memory, blocks)

    def pack(self, part: Rectangle, staging: bytearray) -> None:
        """Copy the KV of `part` from the blocks to the start of `staging`."""
        self._move(part, staging, gather_rows)

    def unpack(self, part: Rectangle, staging: bytearray) -> None:
        """Copy the KV of `part` from the start of `staging` into the blocks."""
        self._move(part, staging, scatter_rows)

    def _move(
        self,
        part: Rectangle,
        staging: bytearray,
        move: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None],
    ) -> None:
        rows, index = self._rows_of(part.tokens)
        half = len(part.tokens) * self._token_bytes // 2
        wire = torch.frombuffer(staging, dtype=torch.uint8, count=part.area * self._token_bytes)
        pieces = iter(torch.split(wire, half))
        for layer in range(part.layers.start - self._first_layer, part.layers.stop - self._first_layer):
            for cache in (rows.keys[layer], rows.values[layer]):
                move(cache, index, next(pieces).view(cache.dtype).view(-1, cache.shape[1]))

    def _rows_of(self, tokens: Interval) -> tuple["_Rows", torch.Tensor]:
        """Whole blocks where the wire's order allows it: the wider the rows, the faster the copy."""
        size = self._block_size
        if self._by_block is not None and tokens.start % size == 0 and tokens.stop % size == 0:
            return self._by_block, self._by_block.index[tokens.start // size : tokens.stop // size]
        per_token = self._by_token.rows_per_token
        return self._by_token, self._by_token.index[tokens.start * per_token : tokens.stop * per_token]


class _Rows(msgspec.Struct, frozen=True):
    """Each layer's K and V as equal rows, and which of these rows the hand-off uses, in token order."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    index: torch.Tensor
    rows_per_token: int = 1


def _token_rows(memory: PagedMemory, blocks: Sequence[int], num_tokens: int) -> _Rows:
    """One row for each token (NHD), or for each head of each token (HND)."""
    layout = memory.layout
    tokens = torch.arange(num_tokens)
    block = torch.tensor(blocks, dtype=torch.int64)[tokens // layout.block_size]
    slot = tokens % layout.block_size
    match layout.order:
        case KVOrder.NHD:
            index = block * layout.block_size + slot
            return _rows(memory, index, len(layout.heads) * layout.head_dim, rows_per_token=1)
        case KVOrder.HND:
            heads = torch.arange(len(layout.heads))
            by_head = (block[:, None] * len(layout.heads) + heads) * layout.block_size + slot[:, None]
            return _rows(memory, by_head.flatten(), layout.head_dim, rows_per_token=len(layout.heads))


def _block_rows(memory: PagedMemory, blocks: Sequence[int]) -> _Rows | None:
    """One row for each block; None where a block is not in the order of the wire."""
    layout = memory.layout
    if layout.order is not KVOrder.NHD:
        return None
    row_elements = layout.block_size * len(layout.heads) * layout.head_dim
    return _rows(memory, torch.tensor(blocks, dtype=torch.int64), row_elements, rows_per_token=1)


def _rows(memory: PagedMemory, index: torch.Tensor, row_elements: int, rows_per_token: int) -> _Rows:
    return _Rows(
        keys=[as_rows(tensor, row_elements) for tensor in memory.keys],
        values=[as_rows(tensor, row_elements) for tensor in memory.values],
        index=index.to(memory.keys[0].device),
        rows_per_token=rows_per_token,
    )
