"""A plan bound to memory: from rectangles of (layer, token) to bytes in a staging buffer, and back."""

from collections.abc import Sequence

import torch

from common.kv.intervals import Interval
from common.kv.layout import KVLayout
from transfer.kernels.base import CopySpec, Kernel, scales_tensor
from transfer.memory import PagedMemory
from transfer.plan import CopyPlan
from transfer.rectangles import Rectangle


class Binding:
    """The blocks of one hand-off at one side.

    `pack` and `unpack` block their thread for the copy; call them off the event loop.
    """

    def __init__(self, plan: CopyPlan, memory: PagedMemory, blocks: Sequence[int], kernel: Kernel) -> None:
        self._first_layer = plan.layers.start
        self._parts = plan.target.parts
        self._token_bytes = plan.token_bytes_per_layer
        self._copy = kernel.bind(_spec(plan, memory, blocks))

    def pack(self, part: Rectangle, staging: memoryview) -> int:
        """Copy the KV of `part` from the blocks to the start of `staging`; returns how many elements were clamped."""
        return self._copy.gather(self._views(part), part.tokens, staging[: part.area * self._token_bytes])

    def unpack(self, part: Rectangle, staging: memoryview) -> int:
        """Copy the KV of `part` from the start of `staging` into the blocks; returns how many were clamped."""
        return self._copy.scatter(self._views(part), part.tokens, staging[: part.area * self._token_bytes])

    def _views(self, part: Rectangle) -> Interval:
        first = part.layers.start - self._first_layer
        return Interval(first * self._parts, (first + len(part.layers)) * self._parts)


def _spec(plan: CopyPlan, memory: PagedMemory, blocks: Sequence[int]) -> CopySpec:
    mine = memory.layout
    scaled_like = plan.target if plan.wire.scaled_by_target else plan.source
    heads = _within(mine.heads, plan.region.heads)
    layers = _within(mine.layers, plan.layers)
    views = memory.views()[layers.start * mine.parts : layers.stop * mine.parts]
    return CopySpec(
        views=tuple(view[:, :, heads.start : heads.stop] for view in views),
        blocks=tuple(blocks),
        cache_dtype=mine.dtype,
        wire_dtype=plan.wire.dtype,
        wire_order=plan.wire.order,
        cache_scales=_scales(mine, plan),
        wire_scales=_scales(scaled_like, plan),
    )


def _scales(layout: KVLayout, plan: CopyPlan) -> torch.Tensor | None:
    """Of the layers and heads that move."""
    every = scales_tensor(layout.scales, len(layout.layers), layout.parts, len(layout.heads))
    if every is None:
        return None
    layers, heads = _within(layout.layers, plan.layers), _within(layout.heads, plan.region.heads)
    moving = every[layers.start * layout.parts : layers.stop * layout.parts, heads.start : heads.stop]
    return moving.contiguous()


def _within(whole: Interval, part: Interval) -> Interval:
    """`part` counted from the start of `whole`."""
    return Interval(part.start - whole.start, part.stop - whole.start)
