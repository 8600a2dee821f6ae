"""Which kernel serves a device."""

import logging
from pathlib import Path

import torch

from common.compiled import user_cache
from common.kv.layout import KVDType
from transfer.kernels.base import Kernel
from transfer.kernels.cpp_kernel import CppKernel
from transfer.kernels.cupy_kernel import CupyKernel
from transfer.kernels.self_check import PAIRS, agrees_with_torch
from transfer.kernels.torch_kernel import TorchKernel

_log = logging.getLogger(__name__)


def kernel_for(device: torch.device, threads: int = 1, cache: Path | None = None) -> Kernel:
    """The fastest kernel that works here and agrees with torch's, which is the last resort.

    `threads`: how many one call may use, on a CPU.  `cache`: where compiled kernels are kept; None: with the models.
    The first call on a machine compiles, which takes a second or two; later ones take milliseconds.  Says in the log
    why a faster kernel was passed over; who asked logs the `name` of the one chosen.
    """
    match device.type:
        case "cpu":
            return _cpp(device, threads, cache) or TorchKernel()
        case "cuda":  # ROCm, too
            return _cupy(device) or TorchKernel()
        case _:
            return TorchKernel()


def _cpp(device: torch.device, threads: int, cache: Path | None) -> Kernel | None:
    folder = cache or user_cache()
    kernel = None if folder is None else CppKernel.compiled(folder, threads)
    if kernel is not None and not agrees_with_torch(kernel, device, PAIRS):
        _log.error("the C++ kernel does not agree with torch on this machine: packing with torch. Please report this.")
        return None
    return kernel


def _cupy(device: torch.device) -> Kernel | None:
    """Of CuPy's errors no list is complete: no library, no compiler, a wrong version, a wrong wheel."""
    try:
        kernel = CupyKernel()
        if agrees_with_torch(kernel, device, [(KVDType.FLOAT32, KVDType.BFLOAT16)]):
            return kernel
        reason = "it does not agree with torch"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    _log.warning("the GPU kernel cannot be used, packing with torch, which is slower: %s", reason)
    return None
