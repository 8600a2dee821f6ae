"""What a transport must do, and nothing about what it is used for."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from common.config.types import TransferConfig


@dataclass(frozen=True, eq=False)
class Buffer:
    """Staging memory of one segment, made by a backend for its own links."""

    view: memoryview
    """Writable bytes, one-dimensional."""
    handle: object = None
    """What the backend needs to know of it: a file descriptor, a registration."""


class BackendTraits(msgspec.Struct, frozen=True):
    """What a backend is, for those who choose one."""

    same_host: bool = False
    """It reaches processes of this machine only."""
    authenticated: bool = False
    """Both ends prove who they are before anything else is said. One that does not is for one host, or for a network
    that the operator calls trusted."""
    remote_writes: bool = False
    """The source writes landing zones without this process having a hand in it, and perhaps later than it should:
    the zones of a hand-off that did not end well are never used again."""


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
    `receive` is running), this end of the link touches no zone any more.

    `send` and `write` may be called by several tasks at a time, `receive` by one.
    """

    @property
    @abstractmethod
    def bytes_heard(self) -> int:
        """Bytes that have come from the peer so far, of messages and (where it is known) of segments: progress."""

    @abstractmethod
    def register(self, zones: Sequence[Buffer]) -> bytes:
        """D: these buffers, made by the backend of this link, are the landing zones now, in place of any before.

        Returns their descriptor for P; opaque, at most 32 KiB.  It is sent with the next message of this link.  No
        zones: nothing can be written any more, and a write that comes is Corrupt.
        """

    @abstractmethod
    def attach(self, descriptor: bytes) -> None:
        """P: the peer's landing zones; raises Corrupt for a descriptor that this backend did not make."""

    def window(self, zone: int, length: int) -> memoryview | None:  # noqa: ARG002 - for those that override it
        """P: the first `length` bytes of the peer's zone itself, where it lies in this process's memory too.

        The caller then fills the window instead of a buffer of its own, and calls `write` with it.  None (the
        default): there is no such window.
        """
        return None

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
    """Makes links and buffers. Holds nothing else: what it made is owned by who asked for it."""

    scheme: str
    """The scheme of its endpoints."""

    @classmethod
    def from_config(cls, config: TransferConfig) -> "Backend":  # noqa: ARG003 - for those that override it
        """The backend as mesh.yaml wants it. Raises ConfigError or OSError where it cannot work here; the default
        takes no configuration."""
        return cls()

    @property
    @abstractmethod
    def traits(self) -> BackendTraits:
        """What this backend, configured as it is, can promise."""

    def reaches(self, endpoint: str) -> bool:  # noqa: ARG002 - for those that override it
        """Whether an endpoint of this scheme can be reached from here at all: decided without trying, from what it
        says (False for another machine's, where the backend is for one host). The default says yes."""
        return True

    def allocate(self, num_bytes: int) -> Buffer:
        """Staging memory that its links can use, of any content. Raises OSError or MemoryError."""
        return Buffer(memoryview(bytearray(num_bytes)))

    def free(self, buffer: Buffer) -> None:  # noqa: B027 - doing nothing is a fine answer
        """Give back a buffer of `allocate`; nobody uses it any more. The default leaves it to the interpreter."""

    @abstractmethod
    async def listen(self, accept: Callable[[Link], None]) -> Listener:
        """Open an endpoint; `accept` is called on the event loop with each link and then owns it."""

    @abstractmethod
    async def connect(self, endpoint: str) -> Link:
        """A link to the source at `endpoint`; raises PeerLost when there is none."""
