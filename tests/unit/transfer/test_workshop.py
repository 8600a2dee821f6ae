"""What a source or sink is made of."""

import msgspec
import numpy as np
import pytest
import torch

from common.clock import SystemClock
from transfer.backends.inproc import InprocBackend
from transfer.memory import PagedMemory
from transfer.pinning import HostPinning
from transfer.testing import example_layout, example_limits
from transfer.workshop import Workshop


def workshop(device: str = "cpu") -> Workshop:
    layout = msgspec.structs.replace(example_layout(), device=device)
    return Workshop("test", PagedMemory.zeros(layout, 8), example_limits(), SystemClock(), [InprocBackend()])


async def test_staging_is_pinned_where_the_device_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: dict[int, int] = {}
    devices: list[torch.device] = []

    def register(address: int, num_bytes: int, _flags: int) -> int:
        pinned[address] = num_bytes
        return 0

    def for_device(device: torch.device) -> HostPinning:
        devices.append(device)
        return HostPinning(register, pinned.pop)

    monkeypatch.setattr(HostPinning, "for_device", for_device)
    made = workshop()
    assert devices == [torch.device("cpu")]
    async with made.staging["inproc"].lend(3) as loan:
        addresses = {np.frombuffer(buffer.view, dtype=np.uint8).ctypes.data for buffer in loan.buffers}
        assert pinned == dict.fromkeys(addresses, example_limits().segment_bytes)
    assert len(pinned) == 3, "for the next hand-off"
    await made.close()
    assert not pinned


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
async def test_staging_for_a_gpu_is_page_locked() -> None:
    made = workshop("cuda")
    async with made.staging["inproc"].lend(2) as loan:
        for buffer in loan.buffers:
            assert torch.from_numpy(np.frombuffer(buffer.view, dtype=np.uint8)).is_pinned()
    await made.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
async def test_memory_that_cannot_be_page_locked_harms_no_kernel() -> None:
    """CUDA keeps the error of a call for whoever asks next, and torch asks after every kernel."""
    pinning, buffer = HostPinning.for_device(torch.device("cuda")), InprocBackend().allocate(1 << 20)
    assert pinning is not None
    for _ in range(2):  # the second time it is locked already, which is an error
        pinning.pin(buffer)
    assert int(torch.ones(3, device="cuda").sum()) == 3
    pinning.unpin(buffer)
