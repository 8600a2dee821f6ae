"""The GPU kernel against torch's on the CPU, bit for bit, on a CUDA or ROCm device."""

from dataclasses import replace

import pytest
import torch

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from tests.unit.transfer.kernel_cases import Cache, Case
from transfer.kernels.base import Kernel
from transfer.kernels.registry import kernel_for
from transfer.kernels.torch_kernel import TorchKernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    chosen = kernel_for(torch.device("cuda"))
    if chosen.name == "torch":
        pytest.skip("needs a CUDA or ROCm device with CuPy")
    return chosen


def case(have: KVDType, want: KVDType, order: KVOrder, *, scaled: bool) -> Case:
    cache = Cache(have, order, 3, 20, 33, 5, Interval(1, 4), 24, packed=True, gap=2)
    blocks = tuple(torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist())
    scales = torch.linspace(0.01, 30.0, 9).view(3, 3)
    one_side = (scales, None) if have.size_bytes == 1 else (None, scales)
    cache_scales, wire_scales = one_side if scaled else (None, None)
    return Case(cache, blocks, want, order, cache_scales, wire_scales, Interval(1, 3), Interval(5, 600))


def pinned(content: bytes) -> memoryview:
    return memoryview(torch.frombuffer(bytearray(content), dtype=torch.uint8).pin_memory().numpy())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("order", list(KVOrder))
@pytest.mark.parametrize("want", list(KVDType))
@pytest.mark.parametrize("have", list(KVDType))
def test_gather_and_scatter(kernel: Kernel, have: KVDType, want: KVDType, order: KVOrder, scaled: bool) -> None:
    subject = case(have, want, order, scaled=scaled)
    host, device = subject.pool(), subject.pool().cuda()
    size = subject.wire_elements * want.size_bytes
    here, there = memoryview(bytearray(size)), pinned(bytes(size))
    at_host, at_device = TorchKernel().bind(subject.spec(host)), kernel.bind(subject.spec(device))

    counts = [copy.gather(subject.views, subject.tokens, to) for copy, to in ((at_host, here), (at_device, there))]
    assert counts[0] == counts[1]
    assert bytes(there) == bytes(here)

    here[:], there[:] = subject.wire(), subject.wire()
    counts = [copy.scatter(subject.views, subject.tokens, at) for copy, at in ((at_host, here), (at_device, there))]
    assert counts[0] == counts[1]
    assert torch.equal(device.cpu(), host)


def test_torch_on_the_device_gives_the_same_bits() -> None:
    subject = case(KVDType.FLOAT32, KVDType.FLOAT8_E4M3FN, KVOrder.HND, scaled=True)
    size = subject.wire_elements
    staging = [memoryview(bytearray(size)) for _ in range(2)]
    for pool, to in zip((subject.pool(), subject.pool().cuda()), staging, strict=True):
        TorchKernel().bind(subject.spec(pool)).gather(subject.views, subject.tokens, to)
    assert bytes(staging[0]) == bytes(staging[1])


def test_staging_need_not_be_pinned(kernel: Kernel) -> None:
    subject = replace(case(KVDType.BFLOAT16, KVDType.BFLOAT16, KVOrder.NHD, scaled=False), seed=7)
    size = subject.wire_elements * 2
    staging = [memoryview(bytearray(size)), memoryview(bytearray(size))]
    TorchKernel().bind(subject.spec(subject.pool())).gather(subject.views, subject.tokens, staging[0])
    kernel.bind(subject.spec(subject.pool().cuda())).gather(subject.views, subject.tokens, staging[1])
    assert bytes(staging[0]) == bytes(staging[1])
