"""Gather and scatter on a GPU by gpu_copy.cu: one source for CUDA and ROCm, compiled at run time by CuPy."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from transfer.kernels.base import BoundCopy, CopySpec, Kernel, blocks_tensor, check_staging

_HERE = Path(__file__).parent

_STRUCTS = {
    KVDType.FLOAT32: "Float32",
    KVDType.BFLOAT16: "BFloat16",
    KVDType.FLOAT16: "Float16",
    KVDType.FLOAT8_E4M3FN: "Float8E4M3FN",
    KVDType.FLOAT8_E4M3FNUZ: "Float8E4M3FNUZ",
}
"""Element types as casts.h calls them."""

_BLOCK = 256
_MAX_GRID = 4096

Launch = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], object]
"""Grid, block, arguments: runs pdmesh_copy on the current stream."""


def gpu_source() -> str:
    """The whole of it: the run-time compilers have no folder to include from."""
    return (_HERE / "casts.h").read_text() + (_HERE / "gpu_copy.cu").read_text()


def gpu_options(spec: CopySpec) -> tuple[str, ...]:
    """What makes the source into the kernel for `spec`."""
    return (
        "-std=c++17",
        f"-DCACHE={_STRUCTS[spec.cache_dtype]}",
        f"-DWIRE={_STRUCTS[spec.wire_dtype]}",
        f"-DCONVERTS={int(spec.converts)}",
        f"-DWIRE_HEADS_FIRST={int(spec.wire_order is KVOrder.HND)}",
    )


class GpuArguments:
    """What the arguments of pdmesh_copy have in common over all calls; owns the memory that they point to."""

    def __init__(self, spec: CopySpec) -> None:
        view = spec.views[0]
        pointers = [each.data_ptr() for each in spec.views]
        self._views = torch.tensor(pointers, dtype=torch.int64, device=view.device)
        self._blocks = blocks_tensor(spec.blocks, view.device)
        self._scales = [
            None if scales is None else scales.contiguous().to(view.device)
            for scales in (spec.cache_scales, spec.wire_scales)
        ]
        self._shape = (*view.shape[1:], *view.stride()[:3])

    def of(
        self, wire: int, clamped: int, total: int, to_wire: bool, views: Interval, tokens: Interval
    ) -> tuple[Any, ...]:
        """`wire`, `clamped`: addresses; `total`: how many elements move."""
        pointers = (self._views.data_ptr(), self._blocks.data_ptr(), *map(_address, self._scales), wire, clamped)
        numbers = (total, int(to_wire), views.start, tokens.start, len(tokens), *self._shape)
        return (*map(np.uint64, pointers), *map(np.int64, numbers))


class CupyKernel(Kernel):
    """CUDA and ROCm caches; a program is compiled for each pair of types and order, and kept on disk by CuPy.

    The side that packs must have finished writing the cache as any other stream sees it; the side that unpacks finds
    the cache written when `scatter` returns.  Where staging is pinned, the copies run beside the device's other work.
    """

    name = "cupy"

    def __init__(self) -> None:
        """ImportError where CuPy is missing or does not fit the machine."""
        self._cupy: Any = importlib.import_module("cupy")

    def bind(self, spec: CopySpec) -> BoundCopy:
        """See Kernel.bind; ValueError for blocks that are not in the cache."""
        num_blocks = spec.views[0].shape[0]
        if spec.blocks and not 0 <= min(spec.blocks) <= max(spec.blocks) < num_blocks:
            raise ValueError(f"blocks must be in [0, {num_blocks}), not {min(spec.blocks)} … {max(spec.blocks)}")
        with torch.cuda.device(spec.views[0].device):
            module = self._cupy.RawModule(code=gpu_source(), options=gpu_options(spec))
            return _CupyCopy(spec, module.get_function("pdmesh_copy"), self._cupy)


class _CupyCopy(BoundCopy):
    def __init__(self, spec: CopySpec, launch: Launch, cupy: Any) -> None:
        self._spec = spec
        self._launch = launch
        self._cupy = cupy
        self._arguments = GpuArguments(spec)
        self._device = spec.views[0].device
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def gather(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        check_staging(self._spec, views, tokens, staging)
        if staging.nbytes == 0:
            return 0
        with torch.cuda.stream(self._stream):
            wire = torch.empty(staging.nbytes, dtype=torch.uint8, device=self._device)
            clamped = self._run(wire, views, tokens, to_wire=True)
            _host(staging).copy_(wire, non_blocking=True)
            return self._finish(clamped)

    def scatter(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        check_staging(self._spec, views, tokens, staging)
        if staging.nbytes == 0:
            return 0
        with torch.cuda.stream(self._stream):
            wire = _host(staging).to(self._device, non_blocking=True)
            return self._finish(self._run(wire, views, tokens, to_wire=False))

    def _run(self, wire: torch.Tensor, views: Interval, tokens: Interval, *, to_wire: bool) -> torch.Tensor:
        clamped = torch.zeros(1, dtype=torch.int64, device=self._device)
        total = wire.nbytes // self._spec.wire_dtype.size_bytes
        arguments = self._arguments.of(wire.data_ptr(), clamped.data_ptr(), total, to_wire, views, tokens)
        grid = min(-(-total // _BLOCK), _MAX_GRID)
        with self._cupy.cuda.ExternalStream(self._stream.cuda_stream, self._device.index or 0):
            self._launch((grid,), (_BLOCK,), arguments)
        return clamped

    def _finish(self, clamped: torch.Tensor) -> int:
        """Waits for this stream alone; after that staging and the cache are as the caller asked."""
        count = clamped.to("cpu", non_blocking=True)
        self._stream.synchronize()
        return int(count)


def _host(staging: memoryview) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(staging, dtype=np.uint8))


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
