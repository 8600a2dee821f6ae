"""What a KV block holds, in a word: the key of a full block names its tokens and all tokens before it. Pure."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

KEY_BYTES: Final = 16
"""So many that nobody finds two prompts with one key: whoever did would be answered from another's KV."""

_TOKEN_BYTES: Final = 8


class PrefixNews(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What an instance has come to hold, and what it has forgotten, since it said so last; keys of full blocks."""

    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()


def root_key(model: str, block_size: int) -> bytes:
    """What the first block's key is made with: KV of another model, or in blocks of another size, has other keys.

    `model` is the fingerprint that a layout names.
    """
    return blake2b(f"{block_size}:{model}".encode(), digest_size=KEY_BYTES).digest()


class PrefixKeys:
    """The keys of one sequence's full blocks, made as they are asked for. `root` is a root_key."""

    def __init__(self, root: bytes, block_size: int, keys: Sequence[bytes] = ()) -> None:
        self._root = root
        self._block_size = block_size
        self._keys = list(keys)

    def first(self, count: int, tokens: Callable[[int, int], Sequence[int]]) -> list[bytes]:
        """The keys of the first `count` blocks; tokens(start, stop) are the sequence's tokens of these numbers."""
        self._make(count, tokens)
        return self._keys[:count]

    def at(self, index: int, tokens: Callable[[int, int], Sequence[int]]) -> bytes:
        """The key of one block; see `first`."""
        self._make(index + 1, tokens)
        return self._keys[index]

    def copy(self) -> "PrefixKeys":
        """For a sequence that begins with the same tokens and goes on by itself."""
        return PrefixKeys(self._root, self._block_size, self._keys)

    def _make(self, count: int, tokens: Callable[[int, int], Sequence[int]]) -> None:
        size = self._block_size
        while len(self._keys) < count:
            before = self._keys[-1] if self._keys else self._root
            start = len(self._keys) * size
            self._keys.append(_key(before, tokens(start, start + size)))


def _key(before: bytes, tokens: Sequence[int]) -> bytes:
    words = b"".join(token.to_bytes(_TOKEN_BYTES, "little") for token in tokens)
    return blake2b(before + words, digest_size=KEY_BYTES).digest()
