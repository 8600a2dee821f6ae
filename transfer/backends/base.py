"""What a transport must do, and nothing about what it is used for."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence


class Link(ABC):
    """One hand-off's connection between a sink (D, which dialled) and a source (P, which listens).

    It carries small messages both ways, reliably and in order, and lets P place bytes in D's landing zones.

    *Completion.* When `write` returns, the caller may reuse the buffer, and every message that it sends afterwards
    reaches D after those bytes are in the zone. A socket sends the bytes on the same stream; a one-sided transport
    registers the zones, puts their addresses and keys into the descriptor, writes, and awaits the completion.

    *Failure.* A peer that is gone raises PeerLost from whatever waits on it, and from every later call; damaged or
    senseless bytes raise Corrupt. A peer that is silent raises nothing: the caller counts `bytes_heard`. A transport
    that cannot notice a dead peer keeps a socket beside its data path for that.

    *Cancel.* Every call may be cancelled. After a cancelled `send` or `write` the link may be fit for `close` only.

    *Ownership.* Zones and written buffers belong to the caller. When `close` or `register(())` has returned (and no
    `receive` is running), the link touches no zone any more.

    `send` and `write` may be called by several tasks at a time, `receive` by one.
    """

    @property
    @abstractmethod
    def bytes_heard(self) -> int:
        """Bytes that have come from the peer so far, of messages and (where it is known) of segments: progress."""

    @abstractmethod
    def register(self, zones: Sequence[memoryview]) -> bytes:
        """D: these writable buffers are the landing zones now, in place of any before. Returns their descriptor
        for P; opaque, at most 32 KiB. No zones: nothing can be written any more, and a write that comes is Corrupt.
        """

    @abstractmethod
    def attach(self, descriptor: bytes) -> None:
        """P: the peer's landing zones; raises Corrupt for a descriptor that this backend did not make."""

    @abstractmethod
    async def write(self, zone: int, data: memoryview) -> None:
        """P: place `data` at the start of the peer's zone number `zone`."""

    @abstractmethod
    async def send(self, message: bytes) -> None:
        """Send one message of at most 64 KiB."""

    @abstractmethod
    async def receive(self) -> bytes:
        """The next message. Segments that come before it are in their zones when it returns."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection; the peer sees PeerLost. Idempotent."""


class Listener(ABC):
    """An open endpoint."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """Where a sink connects to, such as "tcp://127.0.0.1:41001"."""

    @abstractmethod
    async def close(self) -> None:
        """Accept no more. Links accepted before live on."""


class Backend(ABC):
    """Makes links. Holds nothing else: what it opened is owned by who asked for it."""

    scheme: str
    """The scheme of its endpoints."""

    @abstractmethod
    async def listen(self, accept: Callable[[Link], None]) -> Listener:
        """Open an endpoint; `accept` is called on the event loop with each link and then owns it."""

    @abstractmethod
    async def connect(self, endpoint: str) -> Link:
        """A link to the source at `endpoint`; raises PeerLost when there is none."""
