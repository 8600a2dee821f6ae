"""Page-locking of staging memory, so that a GPU moves bytes to and from it beside its other work."""

import logging
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch

from transfer.backends.base import Buffer

_log = logging.getLogger(__name__)

Register = Callable[[int, int, int], object]
"""Address, bytes, flags → 0 for success: cudaHostRegister (hipHostRegister has that name in torch too)."""
Unregister = Callable[[int], object]


class HostPinning:
    """Pins buffers that others made, whatever they are made of. A buffer that cannot be pinned works all the same, and
    slower: said once in the log."""

    def __init__(self, register: Register, unregister: Unregister) -> None:
        self._register = register
        self._unregister = unregister
        self._pinned: set[int] = set()
        self._has_complained = False

    @classmethod
    def for_device(cls, device: torch.device) -> "HostPinning | None":
        """None where the cache is in host memory itself."""
        if device.type != "cuda":
            return None
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]

        def register(address: int, num_bytes: int, flags: int) -> object:
            with torch.cuda.device(device):
                answer = runtime.cudaHostRegister(address, num_bytes, flags)
                if int(answer) != 0:
                    _forget_error(device)
                return answer

        def unregister(address: int) -> object:
            with torch.cuda.device(device):
                return runtime.cudaHostUnregister(address)

        return cls(register, unregister)

    def pin(self, buffer: Buffer) -> None:
        """Before its first use."""
        address = _address(buffer)
        if int(self._register(address, buffer.view.nbytes, 0)) == 0:  # type: ignore[call-overload]
            self._pinned.add(address)
        elif not self._has_complained:
            self._has_complained = True
            _log.warning("staging memory cannot be page-locked: copies to and from the GPU will not overlap")

    def unpin(self, buffer: Buffer) -> None:
        """Before it is given back to its backend."""
        address = _address(buffer)
        if address in self._pinned:
            self._pinned.remove(address)
            self._unregister(address)


def _forget_error(device: torch.device) -> None:
    """The error of a call stays with its thread, and would be raised by the next kernel that anybody launches there."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device)


def _address(buffer: Buffer) -> int:
    return int(np.frombuffer(buffer.view, dtype=np.uint8).ctypes.data)
