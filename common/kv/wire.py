"""In which form KV travels between two caches: a pure rule that P, D and the gateway share."""

import msgspec

from common.kv.layout import KVDType, KVLayout, KVOrder


class WireFormat(msgspec.Struct, frozen=True):
    """How the elements of a segment lie on the wire."""

    dtype: KVDType
    order: KVOrder
    """NHD: [tokens, heads, head_dim] for each layer and part; HND: [heads, tokens, head_dim]."""
    scaled_by_target: bool
    """fp8 on the wire is scaled as at the target; otherwise as at the source."""

    @property
    def casts_at_source(self) -> bool:
        """Whether the source converts elements; otherwise the target does, if anybody has to."""
        return self.scaled_by_target


def wire_format(source: KVLayout, target: KVLayout) -> WireFormat:
    """The narrower element type travels, so that the fewest bytes do; of two equally wide ones the source's.

    Heads come first only where both caches have them so: then the runs are longest at both ends.
    """
    narrows = target.dtype.size_bytes < source.dtype.size_bytes
    both_heads_first = source.order is target.order is KVOrder.HND
    return WireFormat(
        dtype=target.dtype if narrows else source.dtype,
        order=KVOrder.HND if both_heads_first else KVOrder.NHD,
        scaled_by_target=narrows,
    )


def wire_token_bytes(source: KVLayout, target: KVLayout) -> int:
    """Bytes on the wire of one token in every layer, K and V together, where the target holds what the source does."""
    return source.token_bytes // source.dtype.size_bytes * wire_format(source, target).dtype.size_bytes
