"""Random bytes of the operating system, taken many at a time."""

import os

_BLOCK = 4096


class Entropy:
    """Bytes that nobody can foresee: fit for secrets. Owned by one thread of one process, which does not fork.

    A system call for every few bytes lets go of the interpreter's lock each time, and another thread takes it.
    """

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """`size` bytes, at most 4096; no byte is given twice."""
        if self._at + size > len(self._block):
            self._block, self._at = os.urandom(_BLOCK), 0
        start, self._at = self._at, self._at + size
        return self._block[start : self._at]

    def hex(self, size: int) -> str:
        """`size` bytes as text, two digits each."""
        return self.take(size).hex()

    def bits63(self) -> int:
        """A number in [0, 2**63)."""
        return int.from_bytes(self.take(8)) >> 1
