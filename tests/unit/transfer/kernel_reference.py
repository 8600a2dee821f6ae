"""What kernels must do, one element at a time, in Python's own arithmetic: no torch cast, no vector."""

import bisect
import ctypes
import functools
import itertools
import math
import struct
from collections.abc import Iterator

import torch

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from transfer.kernels.base import QUIET_NAN, CopySpec

# Of each narrow type: exponent bits, mantissa bits, exponent bias, magnitudes (bits without the sign) of finite values.
_FORMS = {
    KVDType.BFLOAT16: (8, 7, 127, 0x7F80),
    KVDType.FLOAT16: (5, 10, 15, 0x7C00),
    KVDType.FLOAT8_E4M3FN: (4, 3, 7, 0x7F),
    KVDType.FLOAT8_E4M3FNUZ: (4, 3, 8, 0x80),
}
INT = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def decode(bits: int, dtype: KVDType) -> float:
    """The value of an element."""
    if dtype is KVDType.FLOAT32:
        return struct.unpack("<f", bits.to_bytes(4, "little"))[0]
    sign_bit = 1 << (8 * dtype.size_bytes - 1)
    sign, magnitude = -1.0 if bits & sign_bit else 1.0, bits & ~sign_bit
    if dtype is KVDType.FLOAT8_E4M3FNUZ and bits == sign_bit:
        return math.nan
    finite = _finite(dtype)
    if magnitude < len(finite):
        return sign * finite[magnitude]
    is_infinite = dtype is not KVDType.FLOAT8_E4M3FN and magnitude == len(finite)
    return sign * math.inf if is_infinite else math.nan


def encode(value: float, dtype: KVDType) -> tuple[int, int]:
    """The element nearest to a float32 value (of two the even one), and 1 if it had to be clamped."""
    if math.isnan(value):
        return QUIET_NAN[dtype], 0
    sign_bit = 1 << (8 * dtype.size_bytes - 1) if math.copysign(1.0, value) < 0 else 0
    magnitude, clamped = abs(value), 0
    if magnitude > dtype.largest:
        magnitude, clamped = dtype.largest, 1
    if dtype is KVDType.FLOAT32:
        return int.from_bytes(struct.pack("<f", magnitude), "little") | sign_bit, clamped
    nearest = _nearest(magnitude, _finite(dtype))
    if nearest == 0 and dtype is KVDType.FLOAT8_E4M3FNUZ:
        return 0, clamped
    return nearest | sign_bit, clamped


def convert(bits: int, have: KVDType, scale_have: float | None, want: KVDType, scale_want: float | None):
    """One element from one side to the other: its bits there, and 1 if it was clamped."""
    value = decode(bits, have)
    if scale_have is not None:
        value = _float32(value * scale_have)
    if scale_want is not None:
        value = _float32(_divide(value, scale_want))
    return encode(value, want)


def gather(spec: CopySpec, views: Interval, tokens: Interval) -> tuple[bytes, int]:
    """What must be in staging, and the count."""
    wire, total = bytearray(len(views) * len(tokens) * spec.part_token_bytes), 0
    size = spec.wire_dtype.size_bytes
    for view, place, offset, have, want in _elements(spec, views, tokens):
        element = int(_ints(view, spec.cache_dtype)[place]) & _mask(spec.cache_dtype)
        bits, clamped = (
            convert(element, spec.cache_dtype, have, spec.wire_dtype, want) if spec.converts else (element, 0)
        )
        wire[offset : offset + size] = bits.to_bytes(size, "little")
        total += clamped
    return bytes(wire), total


def scatter(spec: CopySpec, views: Interval, tokens: Interval, wire: bytes) -> int:
    """Writes the cache of `spec`; returns the count."""
    total, size = 0, spec.wire_dtype.size_bytes
    for view, place, offset, have, want in _elements(spec, views, tokens):
        element = int.from_bytes(wire[offset : offset + size], "little")
        bits, clamped = (
            convert(element, spec.wire_dtype, want, spec.cache_dtype, have) if spec.converts else (element, 0)
        )
        cache_size = spec.cache_dtype.size_bytes
        signed = int.from_bytes(bits.to_bytes(cache_size, "little"), "little", signed=cache_size > 1)
        _ints(view, spec.cache_dtype)[place] = signed
        total += clamped
    return total


_Place = tuple[int, int, int, int]


def _elements(
    spec: CopySpec, views: Interval, tokens: Interval
) -> Iterator[tuple[torch.Tensor, _Place, int, float | None, float | None]]:
    """View, place in the view, offset on the wire, scale in the cache, scale on the wire."""
    _, block_size, heads, dims = spec.views[0].shape
    for v, t, h, d in itertools.product(range(len(views)), range(len(tokens)), range(heads), range(dims)):
        block, slot = divmod(tokens.start + t, block_size)
        rows = (
            (v * len(tokens) + t) * heads + h if spec.wire_order is KVOrder.NHD else (v * heads + h) * len(tokens) + t
        )
        offset = (rows * dims + d) * spec.wire_dtype.size_bytes
        index = views.start + v
        have, want = (None if s is None else float(s[index, h]) for s in (spec.cache_scales, spec.wire_scales))
        yield spec.views[index], (spec.blocks[block], slot, h, d), offset, have, want


def _ints(view: torch.Tensor, dtype: KVDType) -> torch.Tensor:
    return view.view(INT[dtype.size_bytes])


def _mask(dtype: KVDType) -> int:
    return (1 << 8 * dtype.size_bytes) - 1


@functools.cache
def _finite(dtype: KVDType) -> list[float]:
    """The value of each finite magnitude, which is ascending."""
    exponent_bits, mantissa_bits, bias, count = _FORMS[dtype]
    values = []
    for magnitude in range(count):
        exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
        assert exponent < 1 << exponent_bits
        if exponent:
            mantissa += 1 << mantissa_bits
        values.append(math.ldexp(mantissa, max(exponent, 1) - bias - mantissa_bits))
    return values


def _nearest(value: float, finite: list[float]) -> int:
    above = bisect.bisect_left(finite, value)
    if above == 0 or finite[above] == value:
        return above
    below = above - 1
    down, up = value - finite[below], finite[above] - value  # exact: both are within a factor of two, or denormal
    if down != up:
        return below if down < up else above
    return below if below % 2 == 0 else above


def _float32(value: float) -> float:
    """Rounded to float32; of one product or quotient of float32 numbers, rounding twice gives the same."""
    return ctypes.c_float(value).value


def _divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)
