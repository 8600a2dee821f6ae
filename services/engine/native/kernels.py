"""The C++ operations behind torch tensors: compiled where they run, on torch's own threads."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from common.compiled import load_library

_HERE: Final = Path(__file__).parent
_HEADERS: Final = ("vectors.h", "parallel.h", "decode_attention.h")

LANES: Final = 16
"""Elements that the C++ side handles at a time; widths must be multiples."""

ATTENTION_DIMS: Final = (16, 32, 64, 80, 96, 128, 256)
"""Head sizes that `decode_attention.h` was compiled for."""

_TYPES: Final = {torch.float32: 0, torch.bfloat16: 1}


def _fields(pointers: str, counts: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in pointers.split()] + [(name, ctypes.c_int64) for name in counts.split()]


class DecodeAttention(ctypes.Structure):
    """`DecodeAttention` in decode_attention.h. What its pointers lead to must outlive the call."""

    _fields_ = (
        *_fields(
            "keys values query out tables table_starts first last",
            "sequences heads groups dim query_row query_head block_size block_stride token_stride head_stride "
            "type threads",
        ),
        ("scaling", ctypes.c_float),
    )


class Write(ctypes.Structure):
    """`Write` in engine_ops.cpp. What its pointers lead to must outlive the call."""

    _fields_ = _fields(
        "key value keys values slots",
        "rows heads dim key_row key_head value_row value_head block_size block_stride token_stride head_stride type",
    )


class Kernels:
    """The library's functions. Tensors are on the CPU, of float32 or bfloat16, contiguous unless said otherwise.

    Nothing is checked on the C++ side, and little here: callers ask `serves` once for what they hold.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        signatures: dict[str, Sequence[type]] = {
            "pdmesh_attend": (ctypes.POINTER(DecodeAttention),),
            "pdmesh_rms_norm": (*(pointer,) * 4, count, count, ctypes.c_float, count, count),
            "pdmesh_rotate": (*(pointer,) * 3, *(count,) * 6),
            "pdmesh_silu_and_multiply": (pointer, pointer, *(count,) * 4),
            "pdmesh_write": (ctypes.POINTER(Write),),
        }
        for name, arguments in signatures.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int64 if name == "pdmesh_attend" else None
        self.library = library

    @classmethod
    def compiled(cls, cache: Path) -> "Kernels | None":
        """Compiled into `cache`, unless it is there already; None, with a log line, where that cannot be done."""
        headers = [_HERE / name for name in _HEADERS]
        library = load_library(_HERE / "engine_ops.cpp", headers, cache / "kernels")
        return None if library is None else cls(library)

    @staticmethod
    def serves(dtype: torch.dtype, device: torch.device, *widths: int) -> bool:
        """Whether rows of these widths can be computed here."""
        return device.type == "cpu" and dtype in _TYPES and all(width % LANES == 0 for width in widths)

    @staticmethod
    def type_code(dtype: torch.dtype) -> int:
        """How the C++ side calls `dtype`."""
        return _TYPES[dtype]

    def attend(self, call: DecodeAttention) -> None:
        """Fill `call.out`. Raises ValueError for a head size that was not compiled."""
        if not self.library.pdmesh_attend(ctypes.byref(call)):
            raise ValueError(f"no attention kernel for heads of {call.dim} elements; there are {ATTENTION_DIMS}")

    def write(self, call: Write) -> None:
        """Copy rows of K and V into the cache."""
        self.library.pdmesh_write(ctypes.byref(call))

    def rms_norm(
        self, x: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """weight · x / rms(x) for the rows of x [rows, width]; `added` is added to x first, in place."""
        out = torch.empty_like(x)
        self.library.pdmesh_rms_norm(
            x.data_ptr(),
            None if added is None else added.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            x.shape[0],
            x.shape[1],
            epsilon,
            _TYPES[x.dtype],
            torch.get_num_threads(),
        )
        return out

    def rotate(self, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, heads: int) -> None:
        """Rotate the first `heads` heads of the rows of x, in place, halves against each other.

        `x` is [rows, at least heads · dim]; `cosines` and `sines` are [rows, dim].
        """
        self.library.pdmesh_rotate(
            x.data_ptr(),
            cosines.data_ptr(),
            sines.data_ptr(),
            x.shape[0],
            x.shape[1],
            heads,
            cosines.shape[1],
            _TYPES[x.dtype],
            torch.get_num_threads(),
        )

    def silu_and_multiply(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate) · up, [rows, width], of rows that hold gate and up side by side."""
        rows, width = x.shape[0], x.shape[1] // 2
        out = torch.empty((rows, width), dtype=x.dtype)
        self.library.pdmesh_silu_and_multiply(
            x.data_ptr(), out.data_ptr(), rows, width, _TYPES[x.dtype], torch.get_num_threads()
        )
        return out
