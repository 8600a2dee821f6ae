"""Layout pair → CopyPlan: what must move, without addresses, kept factored, with a proof that it covers exactly.

Give every KV element the global coordinate (layer, K|V, head, token, dim).  A plan is the product of three factors:
an interval of layers, pieces of heads, and (bound later, per hand-off) the tokens.  On the wire a segment holds its
layers in order; for each the K and then the V of its tokens, token-major: [tokens, heads, head_dim].
"""

import msgspec

from common.kv.intervals import Interval
from common.kv.layout import KVLayout
from transfer.errors import LayoutMismatch

_MUST_BE_EQUAL = ("model", "dtype", "block_size", "order", "layers", "heads", "head_dim", "packed")
"""Fields of a layout that this version cannot translate, in the order in which a mismatch is reported."""


class CopyPlan(msgspec.Struct, frozen=True):
    """How to fill `target` from `source`. Construction fails unless every element of `target` is covered once."""

    source: KVLayout
    target: KVLayout
    layers: Interval
    heads: tuple[Interval, ...]
    """Disjoint pieces, in the order of the wire."""

    def __post_init__(self) -> None:
        if self.layers != self.target.layers:
            raise ValueError(f"layers {self.layers!r} are planned, {self.target.layers!r} are needed")
        reached = self.target.heads.start
        for piece in self.heads:
            if piece.start != reached or len(piece) == 0 or not self.source.heads.contains(piece):
                raise ValueError(f"head pieces {self.heads!r} do not cover {self.target.heads!r} exactly")
            reached = piece.stop
        if reached != self.target.heads.stop:
            raise ValueError(f"head pieces {self.heads!r} do not cover {self.target.heads!r} exactly")

    @property
    def token_bytes_per_layer(self) -> int:
        """Bytes on the wire of K and V of one token in one layer."""
        return self.target.token_bytes_per_layer

    def payload_bytes(self, num_tokens: int) -> int:
        """Bytes on the wire of `num_tokens` tokens in every layer."""
        return num_tokens * len(self.layers) * self.token_bytes_per_layer


def plan_copy(source: KVLayout, target: KVLayout) -> CopyPlan:
    """The plan from one layout to another; raises LayoutMismatch, which names the first field that differs."""
    for field in _MUST_BE_EQUAL:
        at_source, at_target = getattr(source, field), getattr(target, field)
        if at_source != at_target:
            raise LayoutMismatch(field, at_source, at_target)
    return CopyPlan(source=source, target=target, layers=target.layers, heads=(target.heads,))
