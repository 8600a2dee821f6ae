"""Which KV blocks are free, and how often each one in use is referenced."""

from collections import Counter
from collections.abc import Iterable, Sequence

from common.errors import PdmeshError


class BlockError(PdmeshError):
    """Blocks were taken or given back against the rules: a fault in this program."""


class BlockPool:
    """Reference-counted block ids in [0, num_blocks). Allocating and freeing one block take constant time.

    Not thread-safe: the engine thread owns it. A block is free when nobody references it; the last `release` of a
    block frees it at once.
    """

    def __init__(self, num_blocks: int) -> None:
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_blocks(self) -> int:
        """All blocks, free or not."""
        return len(self._references)

    @property
    def num_free(self) -> int:
        """Blocks nobody references."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody references."""
        return len(self._references) - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; raises BlockError (and takes none) when fewer are free."""
        if count > len(self._free):
            raise BlockError(f"{count} blocks asked for, {len(self._free)} of {self.num_blocks} are free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block; raises BlockError for a free one."""
        for block in blocks:
            if self._references[block] == 0:
                raise BlockError(f"block {block} is free and cannot be shared")
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each block; raises BlockError for a free one."""
        for block in blocks:
            if self._references[block] == 0:
                raise BlockError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def is_shared(self, block: int) -> bool:
        """Whether more than one holder references the block."""
        return self._references[block] > 1

    def check_integrity(self, holders: Iterable[Sequence[int]]) -> None:
        """Raise BlockError unless the holders' block tables explain every reference and every free block."""
        expected = Counter(block for table in holders for block in table)
        if any(self._references[block] != count for block, count in expected.items()):
            raise BlockError("reference counts differ from the block tables of the holders")
        if sum(self._references) != sum(expected.values()):
            raise BlockError("blocks are referenced that no holder has")
        if sorted(self._free) != [block for block, count in enumerate(self._references) if count == 0]:
            raise BlockError("the free list is not the set of unreferenced blocks")
