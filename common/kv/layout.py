"""How one rank lays out its part of a model's KV cache: a frozen value without addresses."""

from enum import StrEnum

import msgspec

from common.kv.intervals import Interval


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


_SIZE_BYTES = {
    KVDType.FLOAT32: 4,
    KVDType.BFLOAT16: 2,
    KVDType.FLOAT16: 2,
    KVDType.FLOAT8_E4M3FN: 1,
    KVDType.FLOAT8_E4M3FNUZ: 1,
}


class KVOrder(StrEnum):
    """Memory order inside one block: token-major (NHD) or head-major (HND)."""

    NHD = "NHD"
    HND = "HND"


class KVLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rank's KV cache, address-free.

    A block holds `block_size` tokens of one layer. Its K part has shape [block_size, heads, head_dim] (NHD) or
    [heads, block_size, head_dim] (HND), and V the same; `packed` says whether K and V of a block lie in one tensor.
    `layers` and `heads` are what this rank holds, in the model's own (global) numbering.
    """

    model: str
    """Fingerprint of the model (configuration and weights), equal on every rank that serves it."""
    dtype: KVDType
    block_size: int
    order: KVOrder
    layers: Interval
    heads: Interval
    head_dim: int
    device: str = "cpu"
    packed: bool = False

    @property
    def token_bytes_per_layer(self) -> int:
        """Bytes of K and V of one token in one layer on this rank."""
        return 2 * len(self.heads) * self.head_dim * self.dtype.size_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token in every layer of this rank."""
        return len(self.layers) * self.token_bytes_per_layer

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens (the last one perhaps in part)."""
        return -(-num_tokens // self.block_size)
