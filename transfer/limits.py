"""The bounds of the transfer layer, and what it holds at one moment."""

from typing import Annotated

import msgspec

from common.config.types import TransferConfig

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class TransferLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Memory is bounded by max_staging_bytes, whatever the number and the length of the prompts."""

    segment_bytes: _Positive = 8 << 20
    """Largest segment, and the size of one landing zone."""
    landing_zones: Annotated[int, msgspec.Meta(ge=1, le=128)] = 4
    """Most segments in flight per hand-off: the credit that D gives. A small hand-off gets what it can use."""
    max_staging_bytes: _Positive = 256 << 20
    """Staging memory of all hand-offs of one source or sink over one backend; a hand-off that finds it in use waits
    its turn."""
    max_connections: _Positive = 256
    max_parked: _Positive = 64
    """Takers that may wait for an offer."""
    max_parked_s: float = 300.0
    """Longest wait of a parked taker, whatever deadline it states."""
    max_remembered: _Positive = 1024
    """Ended offers whose late takers are refused at once instead of being parked."""
    progress_timeout_s: float = 5.0
    """A peer from which nothing at all has come for so long ends the hand-off."""
    checksum: bool = True
    """At a sink: ask for an xxh3 checksum of every segment. Control messages always carry one."""
    kernel_threads: _Positive = 1
    """Threads that share the work of one segment, on a CPU."""

    def __post_init__(self) -> None:
        needed = self.segment_bytes * max(self.landing_zones, PACK_BUFFERS)
        if needed > self.max_staging_bytes:
            raise ValueError(
                f"one hand-off needs {needed} bytes of staging ({self.landing_zones} zones of {self.segment_bytes}); "
                f"max_staging_bytes is {self.max_staging_bytes}: raise it, or lower segment_bytes or landing_zones"
            )

    def zones_for(self, payload_bytes: int) -> int:
        """Landing zones for a hand-off of at most so many bytes: one more than it fills, so that P can write one while
        D empties another."""
        return min(self.landing_zones, 1 + max(1, -(-payload_bytes // self.segment_bytes)))

    @classmethod
    def of(cls, config: TransferConfig) -> "TransferLimits":
        """The limits that mesh.yaml asks for."""
        return cls(
            segment_bytes=config.segment_bytes,
            landing_zones=config.landing_zones,
            max_staging_bytes=max(256 << 20, config.segment_bytes * max(config.landing_zones, PACK_BUFFERS)),
            max_parked=config.max_parked,
            progress_timeout_s=config.progress_timeout_s,
            checksum=config.checksum,
            kernel_threads=config.threads,
        )


PACK_BUFFERS = 2
"""Staging buffers of one hand-off at P: one is packed while the other is on the wire."""


class TransferHoldings(msgspec.Struct, frozen=True):
    """What a source or sink holds now; all zero when idle."""

    offers: int = 0
    """Hand-offs: offers that have not ended at a source, takes under way at a sink."""
    parked: int = 0
    connections: int = 0
    staging_bytes: int = 0
    """In use now; what the pool keeps for the next hand-off is not counted."""
    tasks: int = 0
