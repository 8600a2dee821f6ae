"""Which KV blocks are free, how often each one in use is referenced, and what those hold that nobody uses any more."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

from common.errors import PdmeshError

OnNews = Callable[[bytes, bool], None]
"""Told of each key: it is held from now on (True), or no more (False)."""


class BlockError(PdmeshError):
    """Blocks were taken or given back against the rules: a fault in this program."""


def _nobody(key: bytes, is_held: bool) -> None:
    pass


class BlockPool:
    """Reference-counted block ids in [0, num_blocks). Allocating and freeing one block take constant time.

    Not thread-safe: the engine thread owns it. A block is free when nobody references it; the last `release` of a block
    frees it at once. A free block whose content has been named (`name`) keeps it until the block is allocated anew,
    which happens to the one longest free first, and only when no other is free.
    """

    def __init__(self, num_blocks: int, on_news: OnNews = _nobody) -> None:
        self._references = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        """Free, and hold nothing of use."""
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Free, and hold what their key names; the longest free first."""
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._on_news = on_news

    @property
    def num_blocks(self) -> int:
        """All blocks, free or not."""
        return len(self._references)

    @property
    def num_free(self) -> int:
        """Blocks nobody references."""
        return len(self._empty) + len(self._kept)

    @property
    def num_used(self) -> int:
        """Blocks that somebody references."""
        return len(self._references) - self.num_free

    @property
    def num_kept(self) -> int:
        """Free blocks whose content may still be of use."""
        return len(self._kept)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; raises BlockError (and takes none) when fewer are free."""
        if count > self.num_free:
            raise BlockError(f"{count} blocks asked for, {self.num_free} of {self.num_blocks} are free")
        taken = [self._empty.pop() if self._empty else self._forget_oldest() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block; raises BlockError for a free one, unless its content is named."""
        for block in blocks:
            if self._references[block] == 0:
                if block not in self._kept:
                    raise BlockError(f"block {block} is free and cannot be shared")
                del self._kept[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block, the last first: what continues another is forgotten before it.

        Raises BlockError for a free one.
        """
        for block in reversed(blocks):
            if self._references[block] == 0:
                raise BlockError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free(block)

    def is_shared(self, block: int) -> bool:
        """Whether more than one holder references the block."""
        return self._references[block] > 1

    def is_free(self, block: int) -> bool:
        """Whether nobody references the block."""
        return self._references[block] == 0

    # ------------------------------------------------------------ contents

    def name(self, block: int, key: bytes) -> None:
        """A block in use holds, from now on and unchanged, what `key` names. The first of several that hold the same
        is the one that is found.
        """
        if self._references[block] == 0:
            raise BlockError(f"block {block} is free and cannot be named")
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key
            self._on_news(key, True)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks that hold what the first of `keys` name, up to the first that none holds. Takes no reference."""
        found: list[int] = []
        for key in keys:
            if (block := self._block_of.get(key)) is None:
                break
            found.append(block)
        return found

    def _free(self, block: int) -> None:
        if block in self._key_of:
            self._kept[block] = None
        else:
            self._empty.append(block)

    def _forget_oldest(self) -> int:
        block, _ = self._kept.popitem(last=False)
        key = self._key_of.pop(block)
        del self._block_of[key]
        self._on_news(key, False)
        return block

    def check_integrity(self, holders: Iterable[Sequence[int]]) -> None:
        """Raise BlockError unless the holders' tables explain every reference, and free blocks and names fit."""
        expected = Counter(block for table in holders for block in table)
        if any(self._references[block] != count for block, count in expected.items()):
            raise BlockError("reference counts differ from the block tables of the holders")
        if sum(self._references) != sum(expected.values()):
            raise BlockError("blocks are referenced that no holder has")
        unreferenced = [block for block, count in enumerate(self._references) if count == 0]
        if sorted([*self._empty, *self._kept]) != unreferenced:
            raise BlockError("the free blocks are not those that nobody references")
        if {key: block for block, key in self._key_of.items()} != self._block_of:
            raise BlockError("two blocks have one name, or one block has two")
        if not self._kept.keys() <= self._key_of.keys() or self._key_of.keys() & set(self._empty):
            raise BlockError("a free block is kept without a name, or has one and is not kept")
