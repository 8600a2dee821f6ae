"""The source of the GPU kernel, compiled for this CPU and run one thread after another: what can be tested without."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.compiled import load_library
from common.kv.intervals import Interval
from transfer.kernels.base import BoundCopy, CopySpec, Kernel, check_staging
from transfer.kernels.cupy_kernel import GpuArguments, gpu_options, gpu_source

_BEFORE = """
#include <xmmintrin.h>
#define rint __builtin_rint
#define fabs __builtin_fabs
#define signbit __builtin_signbit
#define __global__
struct Dim { unsigned x; };
static Dim gridDim, blockDim, blockIdx, threadIdx;
static void atomicAdd(unsigned long long* sum, unsigned long long value) { *sum += value; }
"""

_AFTER = """
extern "C" void run(unsigned grid, unsigned block, const unsigned long long* p, const long long* n) {
    gridDim.x = grid, blockDim.x = block;
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);  // denormals count as zero: so CuPy compiles, too
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
            pdmesh_copy((const unsigned long long*)p[0], (const long long*)p[1], (const float*)p[2], (const float*)p[3],
                        (WIRE::Bits*)p[4], (unsigned long long*)p[5], n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7],
                        n[8], n[9], n[10]);
    _mm_setcsr(mode);
}
"""


class HostGpuKernel(Kernel):
    """As CupyKernel, without a GPU."""

    name = "gpu-source"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._loaded: dict[tuple[str, ...], Callable[..., Any]] = {}

    def bind(self, spec: CopySpec) -> BoundCopy:
        options = gpu_options(spec)
        if options not in self._loaded:
            self._loaded[options] = self._compile(options)
        return _HostCopy(spec, self._loaded[options])

    def _compile(self, options: tuple[str, ...]) -> Callable[..., Any]:
        defines = [option.removeprefix("-D").replace("=", " ") for option in options if option.startswith("-D")]
        text = "".join(f"#define {define}\n" for define in defines) + _BEFORE + gpu_source() + _AFTER
        source = self._folder / f"gpu{len(self._loaded)}.cpp"
        source.write_text(text)
        library = load_library(source, (), self._folder)
        assert library is not None
        return library.run


class _HostCopy(BoundCopy):
    def __init__(self, spec: CopySpec, run: Callable[..., Any]) -> None:
        self._spec = spec
        self._run = run
        self._arguments = GpuArguments(spec)

    def gather(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        return self._copy(views, tokens, staging, to_wire=True)

    def scatter(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        return self._copy(views, tokens, staging, to_wire=False)

    def _copy(self, views: Interval, tokens: Interval, staging: memoryview, *, to_wire: bool) -> int:
        check_staging(self._spec, views, tokens, staging)
        wire = np.frombuffer(bytes(staging), dtype=np.uint8).copy()  # on a GPU it is always aligned
        clamped = np.zeros(1, dtype=np.uint64)
        total = staging.nbytes // self._spec.wire_dtype.size_bytes
        arguments = self._arguments.of(wire.ctypes.data, clamped.ctypes.data, total, to_wire, views, tokens)
        pointers, numbers = (
            (ctypes.c_uint64 * 6)(*map(int, arguments[:6])),
            (ctypes.c_int64 * 11)(*map(int, arguments[6:])),
        )
        self._run(3, 32, pointers, numbers)
        if to_wire:
            staging[:] = memoryview(wire)
        return int(clamped[0])
