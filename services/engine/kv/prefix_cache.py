"""Which blocks of the pool hold the beginning of a sequence already, computed for another before it."""

from common.kv.prefix import PrefixNews
from services.engine.api import DecodeJob
from services.engine.kv.pool import BlockPool
from services.engine.sequence import Sequence


class PrefixCache:
    """Names full blocks once their KV is there, and finds them for sequences that begin with the same tokens.

    Belongs to the engine core, as the pool does. Where it is off nothing is named and nothing is found.
    """

    def __init__(self, pool: BlockPool, block_size: int, *, is_on: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._is_on = is_on

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks with the first tokens of a waiting sequence, in order. The token from which the next one is
        sampled is always computed, and so is a prompt that is scored: what the model says of a token is kept nowhere.
        """
        if not self._is_on or sequence.is_scored:
            return []
        needed = 1 if isinstance(sequence.job, DecodeJob) else 0
        most = (sequence.known - needed) // self._block_size
        return self._pool.find(sequence.keys.first(most, sequence.tokens))

    def remember(self, sequence: Sequence) -> None:
        """Name the blocks that have become full."""
        if not self._is_on:
            return
        full = sequence.computed // self._block_size
        if full > sequence.named:
            keys = sequence.keys.first(full, sequence.tokens)
            for index in range(sequence.named, full):
                self._pool.name(sequence.blocks[index], keys[index])
            sequence.named = full


class PrefixChanges:
    """What has changed in a pool since it was told last."""

    def __init__(self) -> None:
        self._changes: dict[bytes, bool] = {}

    def note(self, key: bytes, is_held: bool) -> None:
        """See OnNews. What came and went between two tellings is not told."""
        if self._changes.pop(key, is_held) is is_held:
            self._changes[key] = is_held

    def take(self) -> PrefixNews | None:
        """All of it; None where nothing changed."""
        if not self._changes:
            return None
        added = tuple([key for key, is_held in self._changes.items() if is_held])
        removed = tuple([key for key, is_held in self._changes.items() if not is_held])
        self._changes.clear()
        return PrefixNews(added, removed)
