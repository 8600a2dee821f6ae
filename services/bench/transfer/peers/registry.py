"""The raw peers by name."""

from collections.abc import Mapping, Sequence

import msgspec

from common.clock import Clock
from services.bench.transfer.peers.base import Peer
from services.bench.transfer.peers.mooncake import Mooncake
from services.bench.transfer.peers.nixl import Nixl
from services.bench.transfer.peers.raw_ring import RawRing
from services.bench.transfer.peers.raw_tcp import RawTcp
from services.bench.transfer.peers.ucxx import Ucxx

YARDSTICKS = (RawTcp.name, RawRing.name)
"""Those that need nothing but the operating system: measured always."""


class Present(msgspec.Struct, frozen=True):
    """The versions of those that can be imported, and why the others cannot, by name."""

    versions: Mapping[str, str]
    skipped: Mapping[str, str]


def every_peer(clock: Clock) -> Mapping[str, Peer]:
    """The YARDSTICKS first."""
    peers: tuple[Peer, ...] = (RawTcp(), RawRing(), Nixl(clock), Ucxx(clock), Mooncake(clock))
    return {peer.name: peer for peer in peers}


def present(peers: Sequence[Peer]) -> Present:
    """Which of them can be used here."""
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for peer in peers:
        try:
            versions[peer.name] = peer.version()
        except (ImportError, OSError) as error:  # not installed, or a library of the system's is missing
            skipped[peer.name] = f"{type(error).__name__}: {error}"
    return Present(versions, skipped)
