"""What is moved: layouts and sizes, as pure values."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

import msgspec

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from transfer.plan import CopyPlan, plan_copy

MIB = 1 << 20

LAYERS = 16

SOURCE = KVLayout(
    model="bench",
    dtype=KVDType.FLOAT32,
    block_size=16,
    order=KVOrder.NHD,
    layers=Interval(0, LAYERS),
    heads=Interval(0, 8),
    head_dim=128,
)
"""P's cache: 8 KiB for each token and layer."""


class LayoutCase(StrEnum):
    """What D's cache is beside P's."""

    IDENTITY = "identity"
    """The same."""
    FULL = "full"
    """Block size 16→64, NHD→HND, 4 heads of 8; elements as they are."""
    FULL_CAST = "full_cast"
    """The same, and float32→bfloat16: half the bytes on the wire."""


TARGETS: Mapping[LayoutCase, KVLayout] = MappingProxyType(
    {
        LayoutCase.IDENTITY: SOURCE,
        LayoutCase.FULL: msgspec.structs.replace(SOURCE, block_size=64, order=KVOrder.HND, heads=Interval(4, 8)),
        LayoutCase.FULL_CAST: msgspec.structs.replace(
            SOURCE, block_size=64, order=KVOrder.HND, heads=Interval(4, 8), dtype=KVDType.BFLOAT16
        ),
    }
)


class TakeCase(msgspec.Struct, frozen=True):
    """One hand-off."""

    scheme: str
    size_bytes: int
    """Of the KV that moves, as the source holds it."""
    layout: LayoutCase
    checksum: bool

    def __str__(self) -> str:
        sums = "checksum" if self.checksum else "no checksum"
        return f"{self.scheme}, {self.size_bytes // MIB} MiB, {self.layout.value}, {sums}"

    @property
    def plan(self) -> CopyPlan:
        """What moves."""
        return plan_copy(SOURCE, TARGETS[self.layout])

    @property
    def num_tokens(self) -> int:
        """Whole tokens that make up the size."""
        return tokens_of(self.layout, self.size_bytes)

    @property
    def wire_bytes(self) -> int:
        """Bytes on the wire."""
        return self.plan.payload_bytes(self.num_tokens)


class RawCase(msgspec.Struct, frozen=True):
    """So many bytes moved by something that knows no KV: `mover` is MEMCPY or a raw peer's name."""

    mover: str
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.mover}, {self.size_bytes // MIB} MiB"


MEMCPY = "memcpy"
"""The raw mover that is one thread of this process."""


def tokens_of(layout: LayoutCase, size_bytes: int) -> int:
    """The tokens whose moved heads, all layers, are `size_bytes` in the source's cache."""
    heads = len(TARGETS[layout].heads)
    return size_bytes * len(SOURCE.heads) // (SOURCE.token_bytes * heads)


def take_cases(schemes: Sequence[str], size_bytes: int) -> tuple[TakeCase, ...]:
    """Every backend × layout × checksum."""
    return tuple(
        TakeCase(scheme, size_bytes, layout, checksum)
        for scheme in schemes
        for layout in LayoutCase
        for checksum in (False, True)
    )


class Effort(msgspec.Struct, frozen=True):
    """How much is measured."""

    rounds: Mapping[int, int]
    """For each size in bytes, the interleaved repeats."""
    kernel_bytes: int
    kernel_rounds: int
    plan_blocks: int
    plan_rounds: int
    pipeline_rounds: int
    layerwise_rounds: int
    prompt_tokens: tuple[int, ...]

    @property
    def largest_bytes(self) -> int:
        """The size whose ratios make the summary."""
        return max(self.rounds)


WHOLE = Effort(
    rounds=MappingProxyType({1 * MIB: 41, 16 * MIB: 21, 256 * MIB: 21}),
    kernel_bytes=64 * MIB,
    kernel_rounds=11,
    plan_blocks=4096,
    plan_rounds=5,
    pipeline_rounds=15,
    layerwise_rounds=15,
    prompt_tokens=(128, 512, 2048),
)
QUICK = Effort(
    rounds=MappingProxyType({1 * MIB: 2, 16 * MIB: 2}),
    kernel_bytes=2 * MIB,
    kernel_rounds=2,
    plan_blocks=64,
    plan_rounds=2,
    pipeline_rounds=2,
    layerwise_rounds=2,
    prompt_tokens=(128,),
)
"""Seconds, not minutes; figures of it mean little."""
