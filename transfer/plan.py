"""Layout pair → CopyPlan: what must move, without addresses, kept factored, with a proof that it covers exactly.

Give every KV element the global coordinate (layer, part, head, token, dim); a part is K or V (or the one latent).  A
plan is the product of three factors: an interval of layers, an interval of heads, and (bound later, per hand-off) the
tokens.  Block size, memory order, packing and element type need no factor: they are how each side maps coordinates to
its own memory.  On the wire a segment holds its layers in order; for each its parts, as `WireFormat` says.
"""

from functools import cached_property

import msgspec

from common.kv.intervals import Interval
from common.kv.layout import KVLayout
from common.kv.wire import WireFormat, wire_format
from transfer.errors import LayoutMismatch

_MUST_BE_EQUAL = {
    "model": "both instances must serve the same model files",
    "kind": "a latent cannot be turned into K and V: serve one attention kind at both",
    "head_dim": "both instances must serve the same model",
}
"""Fields in which no translation exists, and what would work."""


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Layers × heads in the model's numbering: what one link of a hand-off carries."""

    layers: Interval
    heads: Interval

    @property
    def area(self) -> int:
        """Layers times heads."""
        return len(self.layers) * len(self.heads)

    def intersect(self, other: "Region") -> "Region":
        """What both hold."""
        return Region(self.layers.intersect(other.layers), self.heads.intersect(other.heads))

    def contains(self, other: "Region") -> bool:
        """Whether every layer and head of `other` is in this one."""
        return self.layers.contains(other.layers) and self.heads.contains(other.heads)


def region_of(layout: KVLayout) -> Region:
    """What one rank holds."""
    return Region(layout.layers, layout.heads)


class CopyPlan(msgspec.Struct, frozen=True, dict=True):
    """How to fill `region` of `target` from `source`. Construction fails unless both hold all of it."""

    source: KVLayout
    target: KVLayout
    region: Region
    wire: WireFormat

    def __post_init__(self) -> None:
        for side, layout in (("source", self.source), ("target", self.target)):
            if self.region.area == 0 or not region_of(layout).contains(self.region):
                raise ValueError(f"the {side} holds {region_of(layout)!r}, which does not cover {self.region!r}")

    @property
    def layers(self) -> Interval:
        """The layers that move."""
        return self.region.layers

    @cached_property
    def token_bytes_per_layer(self) -> int:
        """Bytes on the wire of one token in one layer, all parts."""
        return self.part_token_bytes * self.target.parts

    @cached_property
    def part_token_bytes(self) -> int:
        """Bytes on the wire of one token in one layer and part."""
        return len(self.region.heads) * self.target.head_dim * self.wire.dtype.size_bytes

    def payload_bytes(self, num_tokens: int) -> int:
        """Bytes on the wire of `num_tokens` tokens in every layer."""
        return num_tokens * len(self.layers) * self.token_bytes_per_layer


def plan_copy(source: KVLayout, target: KVLayout, region: Region | None = None) -> CopyPlan:
    """The plan that fills `region` of `target` (None: all of it) from `source`.

    Raises LayoutMismatch, which names the first field that cannot be translated, both values, and what would work.
    """
    for field, remedy in _MUST_BE_EQUAL.items():
        at_source, at_target = getattr(source, field), getattr(target, field)
        if at_source != at_target:
            raise LayoutMismatch(field, at_source, at_target, remedy)
    wanted = region_of(target) if region is None else region
    for field in ("layers", "heads"):
        needed: Interval = getattr(wanted, field)
        for held in (getattr(source, field), getattr(target, field)):
            if len(needed) == 0 or not held.contains(needed):
                raise LayoutMismatch(field, held, needed, "take each rank's share from a rank that holds it")
    return CopyPlan(source, target, wanted, wire_format(source, target))
