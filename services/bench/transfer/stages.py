"""Packing and unpacking by themselves: what a hand-off does to memory, without the hand-off."""

from collections.abc import Sequence

from common.kv.intervals import Interval
from transfer.binding import Binding
from transfer.limits import PACK_BUFFERS
from transfer.plan import CopyPlan
from transfer.rectangles import Rectangle, SegmentSchedule


def segments_of(plan: CopyPlan, num_tokens: int, segment_bytes: int) -> tuple[Rectangle, ...]:
    """The segments of a prompt that is computed, in the order in which they leave P."""
    schedule = SegmentSchedule(plan.layers, segment_bytes // plan.token_bytes_per_layer, plan.source.block_size)
    ready = [num_tokens] * len(plan.layers)
    segments: list[Rectangle] = []
    while (segment := schedule.next(ready)) is not None:
        segments.append(segment)
    return tuple(segments)


def whole_of(plan: CopyPlan, num_tokens: int) -> Rectangle:
    """Everything in one segment."""
    return Rectangle(plan.layers, Interval(0, num_tokens))


def pack_buffers(segment_bytes: int, count: int = PACK_BUFFERS) -> tuple[memoryview, ...]:
    """Staging memory; as many buffers as a source uses for one hand-off, unless told otherwise."""
    return tuple(memoryview(bytearray(segment_bytes)) for _ in range(count))


def pack_all(binding: Binding, segments: Sequence[Rectangle], buffers: Sequence[memoryview]) -> None:
    """Pack every segment, each into the next of the buffers in a ring."""
    for number, segment in enumerate(segments):
        binding.pack(segment, buffers[number % len(buffers)])


def unpack_all(binding: Binding, segments: Sequence[Rectangle], buffers: Sequence[memoryview]) -> None:
    """Unpack every segment, each from the next of the buffers in a ring."""
    for number, segment in enumerate(segments):
        binding.unpack(segment, buffers[number % len(buffers)])
