"""The C++ operations behind torch tensors: compiled where they run, on torch's own threads."""

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from common.compiled import load_library
from services.engine.native.structs import STRUCTS, ChunkAttention, DecodeAttention, HeadNorm, Rotation, Step, Write

_log = logging.getLogger(__name__)

_HERE: Final = Path(__file__).parent

LANES: Final = 16
"""Elements that the C++ side handles at a time; widths must be multiples."""

ATTENTION_DIMS: Final = (16, 32, 64, 80, 96, 128, 256)
"""Head sizes that `decode_attention.h` was compiled for."""

NO_NORM: Final = HeadNorm()

_TYPES: Final = {torch.float32: 0, torch.bfloat16: 1}


class Kernels:
    """The library's functions. Tensors are on the CPU, of float32 or bfloat16, contiguous unless said otherwise.

    Nothing is checked on the C++ side, and little here: callers ask `serves` once for what they hold, and only what
    models make anew for every step is looked at again.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        signatures: dict[str, Sequence[type]] = {
            "pdmesh_attend": (ctypes.POINTER(DecodeAttention),),
            "pdmesh_attend_chunk": (ctypes.POINTER(ChunkAttention),),
            "pdmesh_rms_norm": (*(pointer,) * 4, count, count, ctypes.c_float, count, count),
            "pdmesh_rotate": (ctypes.POINTER(Rotation),),
            "pdmesh_silu_and_multiply": (pointer, pointer, *(count,) * 4),
            "pdmesh_write": (ctypes.POINTER(Write),),
            "pdmesh_most_rows": (count,),
            "pdmesh_step": (ctypes.POINTER(Step),),
        }
        counting = ("pdmesh_attend", "pdmesh_attend_chunk", "pdmesh_most_rows")
        for name, arguments in signatures.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = count if name in counting else None
        self.library = library

    @classmethod
    def compiled(cls, cache: Path) -> "Kernels | None":
        """Compiled into `cache`, unless it is there already; None, with a log line, where that cannot be done."""
        headers = sorted(_HERE.glob("*.h"))
        library = load_library(_HERE / "engine_ops.cpp", headers, cache / "kernels")
        if library is None:
            return None
        if unlike := [struct.__name__ for struct in STRUCTS if _size_in(library, struct) != ctypes.sizeof(struct)]:
            names = ", ".join(unlike)
            _log.error("structs.py is not what was compiled in %s: torch computes all. Please report this.", names)
            return None
        return cls(library)

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

    def attend_chunk(self, call: ChunkAttention) -> None:
        """Fill `call.out`. Raises ValueError for a head size that was not compiled."""
        if not self.library.pdmesh_attend_chunk(ctypes.byref(call)):
            raise ValueError(f"no attention kernel for heads of {call.dim} elements; there are {ATTENTION_DIMS}")

    def write(self, call: Write) -> None:
        """Copy rows of K and V into the cache."""
        self.library.pdmesh_write(ctypes.byref(call))

    def rms_norm(
        self, x: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """weight · x / rms(x) for the rows of x [rows, width]; `added` is added to x first, in place.

        Raises ValueError for a weight of another type or width.
        """
        _check("the weight of a norm", weight, x.dtype, x.shape[1:])
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

    def rotate(
        self,
        x: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        heads: tuple[int, int],
        norms: tuple[HeadNorm, HeadNorm] = (NO_NORM, NO_NORM),
    ) -> None:
        """Rotate the first heads of the rows of x, in place, halves against each other; those with a norm, after it.

        `x` is [rows, at least all heads, dim]; `cosines` and `sines` are [rows, dim]. `heads` and `norms`: of the
        queries, which come first, and of the keys.  Raises ValueError for cosines or sines of another type or size.
        """
        rows, all_heads, dim = x.shape
        for name, table in (("cosines", cosines), ("sines", sines)):
            _check(name, table, x.dtype, (rows, dim))
        call = Rotation(
            x=x.data_ptr(),
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            query_norm=norms[0],
            key_norm=norms[1],
            rows=rows,
            row_stride=all_heads * dim,
            query_heads=heads[0],
            key_heads=heads[1],
            dim=dim,
            type=_TYPES[x.dtype],
            threads=torch.get_num_threads(),
        )
        self.library.pdmesh_rotate(ctypes.byref(call))

    def silu_and_multiply(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate) · up, [rows, width], of rows that hold gate and up side by side."""
        rows, width = x.shape[0], x.shape[1] // 2
        out = torch.empty((rows, width), dtype=x.dtype)
        self.library.pdmesh_silu_and_multiply(
            x.data_ptr(), out.data_ptr(), rows, width, _TYPES[x.dtype], torch.get_num_threads()
        )
        return out

    def most_rows(self, threads: int) -> int:
        """Rows that `step` computes at most with so many threads; 0 where it cannot have them."""
        return int(self.library.pdmesh_most_rows(threads))

    def step(self, call: Step) -> None:
        """Compute a step of decodes: fill `call.logits`, and the slots of its rows in every layer."""
        self.library.pdmesh_step(ctypes.byref(call))


def _size_in(library: ctypes.CDLL, struct: type[ctypes.Structure]) -> int | None:
    """Bytes of `struct` for the C++ side; None where it does not know it."""
    function = getattr(library, f"pdmesh_size_of_{struct.__name__}", None)
    return None if function is None else int(function())


def _check(what: str, numbers: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """What lies elsewhere than C++ is told, or is of another type, would be read all the same."""
    if numbers.dtype != dtype or numbers.shape != shape or not numbers.is_contiguous():
        raise ValueError(f"{what} must be {list(shape)} of {dtype}, not {list(numbers.shape)} of {numbers.dtype}")
