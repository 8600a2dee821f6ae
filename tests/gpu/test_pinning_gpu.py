"""Staging memory for a GPU is page-locked while the pool has it."""

import numpy as np
import pytest
import torch

from transfer.backends.inproc import InprocBackend
from transfer.pinning import HostPinning
from transfer.staging import StagingPool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


async def test_a_lent_buffer_is_pinned() -> None:
    pool = StagingPool(InprocBackend(), 1 << 20, 1 << 22, HostPinning.for_device(torch.device("cuda")))
    async with pool.lend(2) as loan:
        for buffer in loan.buffers:
            assert torch.from_numpy(np.frombuffer(buffer.view, dtype=np.uint8)).is_pinned()
    pool.close()
