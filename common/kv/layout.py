"""How one rank lays out its part of a model's KV cache: a frozen value without addresses."""

from enum import StrEnum
from typing import Annotated

import msgspec

from common.kv.intervals import Interval

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
"""Peers say it, and it is divided by."""


class KVDType(StrEnum):
    """Element types of a KV cache. The two fp8 kinds are different types: the same byte differs by a factor of two."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E4M3FNUZ = "float8_e4m3fnuz"

    @property
    def size_bytes(self) -> int:
        """Bytes of one element."""
        return _SIZE_BYTES[self]

    @property
    def largest(self) -> float:
        """The largest finite value; a narrowing cast clamps to it."""
        return _LARGEST[self]


_SIZE_BYTES = {
    KVDType.FLOAT32: 4,
    KVDType.BFLOAT16: 2,
    KVDType.FLOAT16: 2,
    KVDType.FLOAT8_E4M3FN: 1,
    KVDType.FLOAT8_E4M3FNUZ: 1,
}


_LARGEST = {
    KVDType.FLOAT32: 3.4028234663852886e38,
    KVDType.BFLOAT16: 3.3895313892515355e38,
    KVDType.FLOAT16: 65504.0,
    KVDType.FLOAT8_E4M3FN: 448.0,
    KVDType.FLOAT8_E4M3FNUZ: 240.0,
}


class KVKind(StrEnum):
    """What a cache holds of each token and layer."""

    HEADS = "heads"
    """K and V of every KV head (MHA, GQA, MQA)."""
    LATENT = "latent"
    """One latent vector from which K and V are computed (MLA); every tensor-parallel rank holds all of it."""


class KVOrder(StrEnum):
    """Memory order inside one block: token-major (NHD) or head-major (HND)."""

    NHD = "NHD"
    HND = "HND"


class KVLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rank's KV cache, address-free.

    A block holds `block_size` tokens of one layer. Its K part has shape [block_size, heads, head_dim] (NHD) or
    [heads, block_size, head_dim] (HND), and V the same; `packed` says whether K and V of a block lie in one tensor.
    `layers` and `heads` are what this rank holds, in the model's own (global) numbering.  A LATENT cache has one part
    instead of two, the one head 0, and as head_dim the length of the latent.
    """

    model: str
    """Fingerprint of the model (configuration and weights), equal on every rank that serves it."""
    dtype: KVDType
    block_size: _Size
    order: KVOrder
    layers: Interval
    heads: Interval
    head_dim: _Size
    device: str = "cpu"
    packed: bool = False
    kind: KVKind = KVKind.HEADS
    scales: bytes | None = None
    """For fp8: value = stored · scale. Little-endian float32 of shape [layers, parts, heads]; None: all are 1."""

    def __post_init__(self) -> None:
        if self.kind is KVKind.LATENT and (self.heads != Interval(0, 1) or self.packed):
            raise ValueError(
                f"a latent cache has the one head [0, 1) and nothing to pack, "
                f"not {self.heads!r} and packed {self.packed!r}"
            )
        if self.scales is not None and len(self.scales) != 4 * len(self.layers) * self.parts * len(self.heads):
            raise ValueError(
                f"{len(self.scales)} bytes of scales; float32 for {len(self.layers)} layers, {self.parts} parts and "
                f"{len(self.heads)} heads are {4 * len(self.layers) * self.parts * len(self.heads)}"
            )

    @property
    def parts(self) -> int:
        """Tensors of a block: K and V, or the latent alone."""
        return 1 if self.kind is KVKind.LATENT else 2

    @property
    def token_bytes_per_layer(self) -> int:
        """Bytes of one token in one layer on this rank, K and V together."""
        return self.parts * len(self.heads) * self.head_dim * self.dtype.size_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in every layer of this rank, K and V together."""
        return len(self.layers) * self.token_bytes_per_layer

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens (the last one perhaps in part)."""
        return -(-num_tokens // self.block_size)
