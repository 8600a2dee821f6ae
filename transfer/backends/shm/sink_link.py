"""D's end of a link: it hands its zones over, and takes no descriptor itself."""

import os
from collections.abc import Sequence

import msgspec

from transfer.backends.base import Buffer
from transfer.backends.shm.memory import OwnZone
from transfer.backends.shm.message_link import MessageLink
from transfer.backends.shm.stream import MAX_FDS, FdStream
from transfer.errors import Corrupt


class SinkLink(MessageLink):
    """The zones' descriptors travel with the message that follows `register`."""

    def __init__(self, stream: FdStream) -> None:
        super().__init__(stream)
        self._to_send: tuple[OwnZone, ...] = ()

    def register(self, zones: Sequence[Buffer]) -> bytes:
        """See Link.register. The peer can go on writing zones of before: they are not this link's to protect."""
        if len(zones) > MAX_FDS:
            raise ValueError(f"{len(zones)} landing zones; shm can hand over {MAX_FDS} at most: lower landing_zones")
        own = tuple(_own(zone) for zone in zones)
        self._to_send = own
        return msgspec.msgpack.encode([zone.identity for zone in own])

    def _outgoing_fds(self) -> Sequence[int]:
        zones, self._to_send = self._to_send, ()
        return [zone.fd for zone in zones]

    def _fds_arrived(self, fds: Sequence[int]) -> None:
        for fd in fds:
            os.close(fd)
        raise Corrupt(f"the source sent {len(fds)} descriptors; it has nothing to hand over")

    def attach(self, descriptor: bytes) -> None:  # noqa: ARG002
        """It is P that attaches."""
        raise RuntimeError("a sink has zones of its own; it attaches to none")

    async def write(self, zone: int, data: memoryview) -> None:  # noqa: ARG002
        """It is P that writes."""
        raise RuntimeError("a sink does not write")


def _own(zone: Buffer) -> OwnZone:
    if not isinstance(zone.handle, OwnZone):
        raise ValueError(f"{zone!r} was not made by this backend's `allocate`")
    return zone.handle
