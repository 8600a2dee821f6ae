"""P's end of a link: D's zones are mapped here, and a write is only its completion."""

import os
from collections.abc import Sequence

import msgspec

from transfer.backends.base import Buffer
from transfer.backends.shm.mappings import KeptMappings
from transfer.backends.shm.memory import PeerZone, ZoneIdentity, map_zone
from transfer.backends.shm.message_link import MessageLink
from transfer.backends.shm.stream import FdStream
from transfer.errors import Corrupt, PeerLost


class SourceLink(MessageLink):
    """Descriptors are turned into mappings as they come, so that a taker that waits holds none of this process's.

    A window that the caller still holds after `close` stays valid memory; the mapping goes with it.
    """

    def __init__(self, stream: FdStream, kept: KeptMappings) -> None:
        super().__init__(stream)
        self._kept = kept
        self._arrived: list[PeerZone] = []
        """The newest set; it waits for its descriptor."""
        self._zones: list[PeerZone] = []

    def _fds_arrived(self, fds: Sequence[int]) -> None:
        rest = list(reversed(fds))
        self._arrived = []
        try:
            while rest:
                self._arrived.append(map_zone(rest.pop()))
        finally:
            for fd in rest:
                os.close(fd)

    def register(self, zones: Sequence[Buffer]) -> bytes:  # noqa: ARG002
        """It is D that registers."""
        raise RuntimeError("a source has no landing zones")

    def attach(self, descriptor: bytes) -> None:
        """See Link.attach: `descriptor` must tell of the zones that came with the newest descriptors."""
        try:
            said = msgspec.msgpack.decode(descriptor, type=list[ZoneIdentity])
        except (msgspec.MsgspecError, ValueError) as error:
            raise Corrupt(f"not a descriptor of shm zones: {descriptor[:32]!r} ({error})") from error
        arrived, self._arrived = self._arrived, []
        found = [zone.identity for zone in arrived]
        if said != found:
            sizes = [[zone.size_bytes for zone in zones] for zones in (said, found)]
            raise Corrupt(f"the descriptor tells of zones of {sizes[0]!r} bytes; others came with it, of {sizes[1]!r}")
        self._zones = [self._kept.take(zone) for zone in arrived]

    def window(self, zone: int, length: int) -> memoryview:
        """See Link.window; raises Corrupt for a zone that is not there or is too small, PeerLost on a broken link."""
        return self._zone(zone, length).window(length)

    async def write(self, zone: int, data: memoryview) -> None:
        """See Link.write. Of a window this is the completion alone; anything else is copied, on the event loop."""
        target = self._zone(zone, len(data))
        if not target.is_window(data):
            target.window(len(data))[:] = data

    def _zone(self, zone: int, length: int) -> PeerZone:
        if self._is_torn or self._is_broken:
            raise PeerLost("the connection is closed or broken")
        if not 0 <= zone < len(self._zones) or length > self._zones[zone].identity.size_bytes:
            raise Corrupt(f"{length} bytes for zone {zone!r}, of {len(self._zones)} zones")
        return self._zones[zone]

    async def close(self) -> None:
        """See Link.close."""
        # D uses the zones of a hand-off again only if that went well, and then this side is the first to close.
        if not self._is_broken and not self._is_torn:
            for zone in self._zones:
                self._kept.keep(zone)
        self._arrived, self._zones = [], []
        await super().close()
