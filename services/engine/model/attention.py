"""Attention over paged KV, as one function in transformers' public attention-interface registry.

The function finds the step it belongs to in a keyword of `model.forward`, so nothing is global and several models may
share a process. No mask function is registered under our name: transformers then builds no mask at all.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from common.errors import ModelError
from services.engine.kv.paged_kv import PagedKV
from services.engine.native.kernels import Kernels
from services.engine.native.paged import NativeChunk, NativeDecodes, NativeWrites
from services.engine.step_plan import Chunk, DecodeGroup, StepPlan

ATTENTION_NAME = "pdmesh_paged"

_BY_HAND_ROWS = 256
"""Query rows whose scores are materialised at a time where no fused kernel applies (softcap)."""


class AttentionCall(msgspec.Struct, frozen=True):
    """One layer's call of the attention function, for the one flat row of tokens of a step."""

    layer: int
    query: torch.Tensor
    """[query heads, tokens, head_dim]"""
    key: torch.Tensor
    """[KV heads, tokens, head_dim], as is `value`"""
    value: torch.Tensor
    scaling: float
    window: int | None
    """A token sees the last `window` positions, itself included; None: all."""
    softcap: float | None
    extras: dict[str, Any]
    """Keywords we give no meaning, and the mask."""


class AttentionStep(Protocol):
    """What stands behind the attention function during one forward."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """The attention output, [tokens, query heads, head_dim]."""
        ...


def register_attention() -> None:
    """Make `ATTENTION_NAME` known to transformers (its registry is of the process). Idempotent."""
    AttentionInterface.register(ATTENTION_NAME, paged_attention)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    paged_step: AttentionStep | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - part of the interface; nothing is dropped at inference
    **extras: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query, key, value are [1, heads, tokens, head_dim]; so is the output,
    heads and tokens swapped. Raises ModelError when the model does not hand `paged_step` down to its attention.
    """
    if paged_step is None:
        raise ModelError(
            f"{type(module).__name__} calls attention without `paged_step`: the model does not pass the keywords of "
            "forward() down to its attention layers, so it cannot be served"
        )
    layer: Any = module.layer_idx
    call = AttentionCall(
        layer=layer,
        query=query[0],
        key=key[0],
        value=value[0],
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        extras={"attention_mask": attention_mask, **extras},
    )
    return paged_step.attend(call).unsqueeze(0), None


class PagedStep:
    """One step over the cache: writes each layer's new KV, then attends decodes as padded batches and chunks singly.

    Indices and masks are computed at the first layer of each window and kept for the others. A step with `on_layer`
    waits for the device at each layer, since the KV it announces must be readable by another thread.
    """

    def __init__(
        self, kv: PagedKV, plan: StepPlan, on_layer: Callable[[int], None] | None, kernels: Kernels | None = None
    ) -> None:
        self._kv = kv
        self._plan = plan
        self._on_layer = on_layer
        self._kernels = kernels
        self._views: dict[tuple[int | None, bool], tuple[_View, ...]] = {}
        self._writes = None if self._kernels is None else NativeWrites(self._kernels, kv, plan.slots)
        self._written = kv.token_rows(plan.slots) if self._writes is None else None
        self._stale = kv.token_rows(plan.stale_slots) if plan.stale_slots else None

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Write, announce, attend; see AttentionStep."""
        native = self._kernels is not None and call.softcap is None
        self._write(call)
        if self._stale is not None and not native:
            # A masked key still counts when it is NaN: 0 · NaN. What an earlier owner left must not be seen at all.
            self._kv.clear(call.layer, self._stale)
        self._announce(call.layer)
        views = self._views_for(call.window, native, call.query.dtype)
        if len(views) == 1:
            return views[0].attend(self._kv, call)
        return torch.cat([view.attend(self._kv, call) for view in views])

    def _write(self, call: AttentionCall) -> None:
        if self._writes is not None:
            self._writes.write(self._kv, call)
        else:
            assert self._written is not None  # one of the two, see __init__
            self._kv.write(call.layer, call.key, call.value, self._written)

    def _announce(self, layer: int) -> None:
        if self._on_layer is None:
            return
        if self._kv.device.type != "cpu":
            torch.accelerator.current_stream(self._kv.device).synchronize()
        self._on_layer(layer)

    def _views_for(self, window: int | None, native: bool, dtype: torch.dtype) -> "tuple[_View, ...]":
        views = self._views.get((window, native))
        if views is None:
            views = (
                *self._decode_views(window, native, dtype),
                *(self._chunk_view(chunk, window, native, dtype) for chunk in self._plan.chunks),
            )
            self._views[window, native] = views
        return views

    def _decode_views(self, window: int | None, native: bool, dtype: torch.dtype) -> "Sequence[_View]":
        groups = self._plan.decodes
        if native and groups:
            assert self._kernels is not None  # that is what native means
            return [NativeDecodes(self._kernels, self._kv, groups, window)]
        return [_DecodeView(self._kv, group, window, dtype) for group in groups]

    def _chunk_view(self, chunk: Chunk, window: int | None, native: bool, dtype: torch.dtype) -> "_View":
        if native:
            assert self._kernels is not None  # that is what native means
            return NativeChunk(self._kernels, self._kv, chunk, window)
        return _chunk_view(self._kv, chunk, window, dtype)


class _View(Protocol):
    """Some rows of a step with what they attend to, for one window; good for every layer with that window."""

    def attend(self, kv: PagedKV, call: AttentionCall) -> torch.Tensor: ...


class _Gathered:
    """Gathered blocks, and the buffers they are gathered into, which all layers reuse."""

    def __init__(self, kv: PagedKV, tables: Sequence[Sequence[int]]) -> None:
        layout = kv.layout
        self._rows = kv.context_rows(tables)
        shape = (len(tables), len(layout.heads), len(tables[0]) * layout.block_size, layout.head_dim)
        self._key = torch.empty(shape, dtype=kv.dtype, device=kv.device)
        self._value = torch.empty_like(self._key)

    def gather(self, kv: PagedKV, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        kv.gather(layer, self._rows, self._key, self._value)
        return self._key, self._value


class _DecodeView:
    """A group of decodes. The query heads that share a KV head are rows of one product, so no KV is repeated."""

    def __init__(self, kv: PagedKV, group: DecodeGroup, window: int | None, dtype: torch.dtype) -> None:
        size = kv.layout.block_size
        seen = [0 if window is None else max(0, position + 1 - window) for position in group.positions]
        tables = [
            blocks[first // size : position // size + 1]
            for blocks, first, position in zip(group.blocks, seen, group.positions, strict=True)
        ]
        width = max(len(table) for table in tables)
        # Padding repeats the sequence's own last block: masked, and never another's memory.
        padded = [[*table, *[table[-1]] * (width - len(table))] for table in tables]
        self._rows = slice(group.first_row, group.first_row + len(padded))
        self._context = _Gathered(kv, padded)
        origin = [first // size * size for first in seen]
        low, high = (
            torch.tensor([[a - b] for a, b in zip(bound, origin, strict=True)], device=kv.device)
            for bound in (seen, group.positions)
        )
        index = torch.arange(width * size, device=kv.device)
        mask = _additive((index >= low) & (index <= high), dtype)
        self._mask = mask.repeat_interleave(len(kv.layout.heads), 0).unsqueeze(1)

    def attend(self, kv: PagedKV, call: AttentionCall) -> torch.Tensor:
        key, value = (part.flatten(0, 1) for part in self._context.gather(kv, call.layer))
        query_heads, _, dim = call.query.shape
        heads = len(kv.layout.heads)
        query = call.query[:, self._rows].transpose(0, 1).reshape(-1, query_heads // heads, dim)
        mixed = _attend_by_hand(query, key, value, self._mask, call)
        return mixed.view(-1, query_heads, dim)


def _chunk_view(kv: PagedKV, chunk: Chunk, window: int | None, dtype: torch.dtype) -> "_ChunkView":
    """Two cases: a chunk that starts its sequence attends to its own K and V; any other gathers its context."""
    size = kv.layout.block_size
    seen = 0 if window is None else max(0, chunk.start + 1 - window)
    context = None
    if chunk.start > 0:
        context = _Gathered(kv, [chunk.blocks[seen // size : -(-chunk.stop // size)]])
    origin = seen // size * size
    query = torch.arange(chunk.start, chunk.stop, device=kv.device).unsqueeze(1)
    index = torch.arange(origin, chunk.stop, device=kv.device)
    mask = None
    if context is not None or (window is not None and window < chunk.stop):
        visible = index <= query
        if window is not None:
            visible &= index > query - window
        mask = _additive(visible, dtype)
    return _ChunkView(slice(chunk.first_row, chunk.first_row + chunk.stop - chunk.start), context, mask)


class _ChunkView:
    """One chunk. KV heads take the place of the batch, and each is expanded (not copied) over its query heads.

    `mask` is None for a chunk that starts its sequence and sees all of it: plainly causal.
    """

    def __init__(self, rows: slice, context: _Gathered | None, mask: torch.Tensor | None) -> None:
        self._rows = rows
        self._context = context
        self._mask = mask

    def attend(self, kv: PagedKV, call: AttentionCall) -> torch.Tensor:
        heads = len(kv.layout.heads)
        if self._context is None:
            key, value = call.key[:, self._rows], call.value[:, self._rows]
        else:
            assert self._mask is not None  # only a chunk without a context is plainly causal
            length = self._mask.shape[1]
            key, value = (part[0, :, :length] for part in self._context.gather(kv, call.layer))
        rows = call.query[:, self._rows]
        query = rows.view(heads, -1, *rows.shape[1:])
        if call.softcap is None:
            key, value = (part.unsqueeze(1).expand(-1, query.shape[1], -1, -1) for part in (key, value))
            mixed = scaled_dot_product_attention(
                query, key, value, attn_mask=self._mask, is_causal=self._mask is None, scale=call.scaling
            )
        else:
            mixed = self._softcapped(query, key, value, call)
        return mixed.flatten(0, 1).transpose(0, 1)

    def _softcapped(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: AttentionCall
    ) -> torch.Tensor:
        mask = self._mask
        if mask is None:
            length = key.shape[1]
            mask = _additive(torch.ones((length, length), dtype=torch.bool, device=key.device).tril_(), key.dtype)
        parts = []
        for first in range(0, query.shape[2], _BY_HAND_ROWS):
            rows = slice(first, first + _BY_HAND_ROWS)
            part = query[:, :, rows]
            mixed = _attend_by_hand(part.flatten(1, 2), key, value, mask[rows].repeat(query.shape[1], 1), call)
            parts.append(mixed.view(part.shape))
        return torch.cat(parts, 2)


def _attend_by_hand(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, call: AttentionCall
) -> torch.Tensor:
    """softmax(cap(q·kᵀ·scaling) + mask)·v for [batch, rows, dim] and [batch, context, dim]; the softmax in float32.

    For a few query rows on a CPU two plain products take half the time of the fused kernel.
    """
    if call.softcap is None:
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=call.scaling)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)) * (call.scaling / call.softcap)
        scores = scores.tanh_().mul_(call.softcap).add_(mask)
    return torch.bmm(torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype), value)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where visible, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
