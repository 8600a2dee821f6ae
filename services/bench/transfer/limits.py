"""The bounds that both sides of a measurement work within."""

from transfer.limits import PACK_BUFFERS, TransferLimits


def bench_limits(segment_bytes: int, *, checksum: bool = True) -> TransferLimits:
    """The defaults, but for the size of segments."""
    default = TransferLimits()
    return TransferLimits(
        segment_bytes=segment_bytes,
        max_staging_bytes=max(default.max_staging_bytes, segment_bytes * max(default.landing_zones, PACK_BUFFERS)),
        checksum=checksum,
    )
