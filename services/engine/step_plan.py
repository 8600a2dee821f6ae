"""How the items of one step lie in one flat row of tokens, and which of them are attended together. No torch."""

from collections.abc import Sequence

import msgspec

from services.engine.runner import StepItem

_PADDING_RATIO = 2
_PADDING_BLOCKS = 8


class DecodeGroup(msgspec.Struct, frozen=True):
    """Items of one token each, attended as one padded batch: rows [first_row, first_row + len(positions))."""

    first_row: int
    positions: tuple[int, ...]
    blocks: tuple[Sequence[int], ...]


class Chunk(msgspec.Struct, frozen=True):
    """An item of several tokens, attended by itself: tokens [start, stop) of its sequence from `first_row` on."""

    first_row: int
    start: int
    stop: int
    blocks: Sequence[int]


class StepPlan(msgspec.Struct, frozen=True):
    """One step as a flat row: decodes first, group by group, then the chunks in the order given."""

    tokens: list[int]
    positions: list[int]
    slots: list[int]
    """Where the KV of each row goes."""
    stale_slots: list[int]
    """Slots that a decode's last block holds beyond its context: what an earlier owner left there."""
    decodes: tuple[DecodeGroup, ...]
    chunks: tuple[Chunk, ...]
    last_rows: list[int]
    """For each item, in the caller's order, the row of its last token."""


def plan_step(items: Sequence[StepItem], block_size: int) -> StepPlan:
    """Lay `items` out; raises ValueError for an item without tokens or with too few blocks."""
    for item in items:
        _check(item, block_size)
    decodes = [index for index, item in enumerate(items) if len(item.tokens) == 1]
    groups = group_by_context(decodes, [item.start // block_size + 1 for item in items])
    rows = _Rows(items, block_size)
    decode_groups = tuple(rows.add_decodes(group) for group in groups)
    chunks = tuple(rows.add_chunk(index) for index, item in enumerate(items) if len(item.tokens) > 1)
    return StepPlan(
        tokens=rows.tokens,
        positions=rows.positions,
        slots=rows.slots,
        stale_slots=rows.stale_slots,
        decodes=decode_groups,
        chunks=chunks,
        last_rows=rows.last_rows,
    )


def slots_of(blocks: Sequence[int], start: int, stop: int, block_size: int) -> list[int]:
    """The slots (block id · block_size + offset) of tokens [start, stop) of a sequence that owns `blocks`."""
    return [blocks[position // block_size] * block_size + position % block_size for position in range(start, stop)]


def group_by_context(members: Sequence[int], num_blocks: Sequence[int]) -> list[list[int]]:
    """Split `members` (indices into `num_blocks`) so that no one is padded far beyond its own context.

    Longest first. A group is padded to its first member, so a member may join while that is at most twice its own
    blocks, or a few blocks more: a small batch of matrix products costs more than a little padding.
    """
    groups: list[list[int]] = []
    for member in sorted(members, key=lambda index: -num_blocks[index]):
        own = num_blocks[member]
        if groups and num_blocks[groups[-1][0]] <= max(_PADDING_RATIO * own, own + _PADDING_BLOCKS):
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups


def _check(item: StepItem, block_size: int) -> None:
    if not item.tokens:
        raise ValueError(f"a step item at position {item.start!r} without tokens; an item computes at least one")
    stop = item.start + len(item.tokens)
    if len(item.blocks) * block_size < stop:
        raise ValueError(
            f"a step item of tokens [{item.start}, {stop}) with {len(item.blocks)} blocks of {block_size} tokens; "
            f"it needs {-(-stop // block_size)}"
        )


class _Rows:
    """The flat row while it is being filled."""

    def __init__(self, items: Sequence[StepItem], block_size: int) -> None:
        self._items = items
        self._block_size = block_size
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.stale_slots: list[int] = []
        self.last_rows = [0] * len(items)

    def add_decodes(self, group: Sequence[int]) -> DecodeGroup:
        first_row = len(self.tokens)
        size = self._block_size
        for index in group:
            item = self._items[index]
            self._add(index)
            block_end = (item.start // size + 1) * size
            self.stale_slots += slots_of(item.blocks, item.start + 1, block_end, size)
        return DecodeGroup(
            first_row=first_row,
            positions=tuple(self._items[index].start for index in group),
            blocks=tuple(self._items[index].blocks for index in group),
        )

    def add_chunk(self, index: int) -> Chunk:
        item = self._items[index]
        first_row = len(self.tokens)
        self._add(index)
        return Chunk(first_row=first_row, start=item.start, stop=item.start + len(item.tokens), blocks=item.blocks)

    def _add(self, index: int) -> None:
        item = self._items[index]
        stop = item.start + len(item.tokens)
        self.tokens += item.tokens
        self.positions += range(item.start, stop)
        self.slots += slots_of(item.blocks, item.start, stop, self._block_size)
        self.last_rows[index] = len(self.tokens) - 1
