"""P's mappings of zones that will probably be written again."""

import asyncio
from collections import OrderedDict

from transfer.backends.shm.memory import PeerZone, ZoneIdentity

KEPT_BYTES = 1 << 30
KEPT_S = 30.0

_Key = tuple[tuple[int, int], ZoneIdentity]


class KeptMappings:
    """Mappings between hand-offs. D lends the same zones again and again, and mapping one afresh costs a page fault for
    every 4 KiB: four times what the copy costs.

    A mapping is either here or used by one link. Bounded in bytes and in time, since it keeps alive the memory of a D
    that may have died; the one used longest ago goes first. Belongs to one event loop.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES, max_s: float = KEPT_S) -> None:
        self._max_bytes = max_bytes
        self._max_s = max_s
        self._kept: OrderedDict[_Key, tuple[PeerZone, asyncio.TimerHandle]] = OrderedDict()
        self._is_closed = False
        self.bytes_kept = 0

    def take(self, zone: PeerZone) -> PeerZone:
        """The mapping kept of the same memory, which is the caller's now; `zone` itself if there is none.

        Not by the inode alone: the token is what proves that the memory is the same.
        """
        kept = self._forget(_key(zone))
        return zone if kept is None else kept

    def keep(self, zone: PeerZone) -> None:
        """Keep a mapping that a link needs no longer."""
        key = _key(zone)
        self._forget(key)
        if self._is_closed or len(zone.memory) > self._max_bytes:
            return
        while self.bytes_kept + len(zone.memory) > self._max_bytes:
            self._forget(next(iter(self._kept)))
        timer = asyncio.get_running_loop().call_later(self._max_s, self._forget, key)
        self._kept[key] = (zone, timer)
        self.bytes_kept += len(zone.memory)

    def close(self) -> None:
        """Keep nothing any more."""
        self._is_closed = True
        while self._kept:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: _Key) -> PeerZone | None:
        if (found := self._kept.pop(key, None)) is None:
            return None
        zone, timer = found
        timer.cancel()
        self.bytes_kept -= len(zone.memory)
        return zone


def _key(zone: PeerZone) -> _Key:
    return zone.inode, zone.identity
