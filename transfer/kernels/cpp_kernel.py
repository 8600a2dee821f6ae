"""Gather and scatter by cpu_copy.cpp: one pass over memory, off the GIL."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common.compiled import load_library
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from transfer.kernels.base import BoundCopy, CopySpec, Kernel, check_staging
from transfer.memory import torch_dtype

_HERE = Path(__file__).parent

_TYPES = {dtype: row for row, dtype in enumerate(KVDType)}
"""Rows of CASTS in cpu_copy.cpp, which are in the order of KVDType."""


class CppKernel(Kernel):
    """CPU caches."""

    name = "cpp"

    def __init__(self, library: ctypes.CDLL, threads: int = 1) -> None:
        """`threads`: how many one call may use; small calls use fewer."""
        function = library.pdmesh_copy
        function.argtypes = (ctypes.POINTER(_Cache), ctypes.POINTER(_Part), ctypes.c_int64, ctypes.c_int64)
        function.restype = ctypes.c_int64
        self._copy: Callable[..., int] = function
        self._threads = threads

    @classmethod
    def compiled(cls, cache: Path, threads: int = 1) -> "CppKernel | None":
        """Compiled into `cache`, unless it is there already; None, with a log line, where that cannot be done."""
        library = load_library(_HERE / "cpu_copy.cpp", (_HERE / "casts.h",), cache / "kernels")
        return None if library is None else cls(library, threads)

    def bind(self, spec: CopySpec) -> BoundCopy:
        """See Kernel.bind; ValueError for views or blocks that would lead out of the cache."""
        _check(spec)
        return _CppCopy(spec, self._copy, self._threads)


class _Cache(ctypes.Structure):
    """`Cache` in cpu_copy.cpp."""

    _fields_ = (
        ("views", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("block_size", "heads", "dims")),
        *((name, ctypes.c_int64) for name in ("block_stride", "token_stride", "head_stride")),
        *((name, ctypes.c_int64) for name in ("cache_type", "wire_type", "wire_heads_first", "converts")),
        ("cache_scales", ctypes.c_void_p),
        ("wire_scales", ctypes.c_void_p),
    )


class _Part(ctypes.Structure):
    """`Part` in cpu_copy.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("first_view", "num_views", "first_token", "num_tokens")),
        ("wire", ctypes.c_void_p),
    )


class _CppCopy(BoundCopy):
    def __init__(self, spec: CopySpec, copy: Callable[..., int], threads: int) -> None:
        self._spec = spec
        self._function = copy
        self._threads = threads
        self._views = np.array([view.data_ptr() for view in spec.views], dtype=np.uint64)
        self._blocks = np.array(spec.blocks, dtype=np.int64)
        self._scales = [_contiguous(scales) for scales in (spec.cache_scales, spec.wire_scales)]
        self._cache = self._describe()

    def gather(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        return self._run(views, tokens, staging, to_wire=True)

    def scatter(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        return self._run(views, tokens, staging, to_wire=False)

    def _run(self, views: Interval, tokens: Interval, staging: memoryview, *, to_wire: bool) -> int:
        check_staging(self._spec, views, tokens, staging)
        if staging.nbytes == 0:
            return 0
        array = np.frombuffer(staging, dtype=np.uint8)
        part = _Part(views.start, len(views), tokens.start, len(tokens), array.ctypes.data)
        return self._function(ctypes.byref(self._cache), ctypes.byref(part), int(to_wire), self._threads)

    def _describe(self) -> _Cache:
        spec, view = self._spec, self._spec.views[0]
        _, block_size, heads, dims = view.shape
        block_stride, token_stride, head_stride, _ = (stride * view.element_size() for stride in view.stride())
        cache_scales, wire_scales = (None if scales is None else scales.data_ptr() for scales in self._scales)
        return _Cache(
            views=self._views.ctypes.data,
            blocks=self._blocks.ctypes.data,
            block_size=block_size,
            heads=heads,
            dims=dims,
            block_stride=block_stride,
            token_stride=token_stride,
            head_stride=head_stride,
            cache_type=_TYPES[spec.cache_dtype],
            wire_type=_TYPES[spec.wire_dtype],
            wire_heads_first=int(spec.wire_order is KVOrder.HND),
            converts=int(spec.converts),
            cache_scales=cache_scales,
            wire_scales=wire_scales,
        )


def _contiguous(scales: torch.Tensor | None) -> torch.Tensor | None:
    return None if scales is None else scales.contiguous()


def _check(spec: CopySpec) -> None:
    """The C++ side trusts all of this: an error there is a wild write."""
    first = spec.views[0]
    for index, view in enumerate(spec.views):
        alike = view.shape == first.shape and view.stride() == first.stride() and view.dtype == first.dtype
        if not alike or view.dtype != torch_dtype(spec.cache_dtype) or view.device.type != "cpu":
            raise ValueError(
                f"view {index} is {tuple(view.shape)}, strides {view.stride()}, {view.dtype} on {view.device}; it must "
                f"be as the first, {tuple(first.shape)} and {first.stride()}, of {spec.cache_dtype.value} on the CPU"
            )
    if first.dim() != 4 or first.stride(3) != 1:
        raise ValueError(f"views need 4 dimensions, the last contiguous; these have strides {first.stride()}")
    blocks = first.shape[0]
    if spec.blocks and not 0 <= min(spec.blocks) <= max(spec.blocks) < blocks:
        raise ValueError(f"blocks must be in [0, {blocks}), not {min(spec.blocks)} … {max(spec.blocks)}")
    for scales in (spec.cache_scales, spec.wire_scales):
        if scales is not None and (scales.shape != (len(spec.views), first.shape[2]) or scales.dtype != torch.float32):
            raise ValueError(f"scales are {tuple(scales.shape)} of {scales.dtype}; one float32 for each view and head")
