"""What a raw peer does: moves the first bytes of one buffer into another process's buffer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

DEADLINE_S = 30.0
"""No peer notices the death of the other side for sure: nobody waits longer for one move."""


class RawGiver(ABC):
    """The giver's end, in its own process. Blocks its thread."""

    @abstractmethod
    def meet(self, taker: bytes) -> bytes:
        """Get to know the taker by its hello; what it must know in turn."""

    @abstractmethod
    def give(self, num_bytes: int) -> None:
        """Wait for the taker's start, then move the bytes; raises OSError, or what the library raises."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Idempotent."""


class RawTaker(ABC):
    """The taker's end. Blocks its thread."""

    @abstractmethod
    def hello(self) -> bytes:
        """What the giver must know."""

    @abstractmethod
    def meet(self, giver: bytes) -> None:
        """Get to know the giver by its hello."""

    @abstractmethod
    def take(self, num_bytes: int) -> None:
        """Tell the giver to start; return when the bytes are in the buffer. Raises as `RawGiver.give` does."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Idempotent."""


class Peer(ABC):
    """One way, before any buffer is known. Making the ends imports what it needs: ImportError says it is not here."""

    name: str
    settings: str
    """For the rows: what was set, and how it is called."""
    environ: Mapping[str, str] = MappingProxyType({})
    """Variables that its library reads, for both processes; composition roots set them."""

    @abstractmethod
    def version(self) -> str:
        """Of the library; raises ImportError where it is not installed."""

    @abstractmethod
    def giver(self, buffer: Bytes) -> RawGiver:
        """The end that gives `buffer`, which stays the caller's and outlives it."""

    @abstractmethod
    def taker(self, buffer: Bytes) -> RawTaker:
        """The end that fills `buffer`, which stays the caller's and outlives it."""


def poll(is_done: Callable[[], bool], now: Callable[[], float], what: str) -> None:
    """Spin until `is_done()`: these libraries move nothing unless asked. Raises TimeoutError after DEADLINE_S."""
    until = now() + DEADLINE_S
    while not is_done():
        if now() > until:
            raise TimeoutError(f"{what} took more than {DEADLINE_S} s")
