"""Every kernel that runs on a CPU, against one element at a time and against torch's, bit for bit."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVOrder
from tests.unit.transfer import kernel_reference as reference
from tests.unit.transfer.host_gpu import HostGpuKernel
from tests.unit.transfer.kernel_cases import SPECIAL, Cache, Case, cases
from tests.unit.transfer.kernel_reference import INT
from transfer.kernels.base import BoundCopy, CopySpec, Kernel
from transfer.kernels.cpp_kernel import CppKernel
from transfer.kernels.torch_kernel import TorchKernel
from transfer.memory import torch_dtype

NAMES = ("torch", "cpp", "cpp-threads", "gpu-source")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    """Of the GPU's kernel the source, compiled for this CPU."""
    folder = tmp_path_factory.mktemp("kernels")
    compiled, threaded = CppKernel.compiled(folder), CppKernel.compiled(folder, threads=3)
    if compiled is None or threaded is None:
        pytest.skip("needs a C++ compiler")
    return {
        "torch": TorchKernel(),
        "cpp": compiled,
        "cpp-threads": threaded,
        "gpu-source": HostGpuKernel(folder / "gpu"),
    }


def staged(case: Case, content: bytes) -> tuple[bytearray, memoryview]:
    """Staging that starts `skew` bytes after an aligned address, with something on both sides of it."""
    memory = bytearray(b"\xa5" * (len(content) + 256))
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % 64 + case.skew
    memory[start : start + len(content)] = content
    return memory, memoryview(memory)[start : start + len(content)]


def gathered(kernel: Kernel, case: Case, pool: torch.Tensor) -> tuple[bytes, int]:
    size = case.wire_elements * case.wire_dtype.size_bytes
    memory, staging = staged(case, b"\xa5" * size)
    clamped = kernel.bind(case.spec(pool)).gather(case.views, case.tokens, staging)
    wire = bytes(staging)
    staging[:] = b"\xa5" * size
    assert memory == b"\xa5" * len(memory), "bytes beside staging were written"
    return wire, clamped


def scattered(kernel: Kernel, case: Case, pool: torch.Tensor) -> int:
    memory, staging = staged(case, case.wire())
    before = bytes(memory)
    clamped = kernel.bind(case.spec(pool)).scatter(case.views, case.tokens, staging)
    assert memory == before
    return clamped


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_gather_against_one_element_at_a_time(kernels: dict[str, Kernel], name: str, case: Case) -> None:
    pool = case.pool()
    wanted = reference.gather(case.spec(pool), case.views, case.tokens)
    assert gathered(kernels[name], case, pool) == wanted
    assert torch.equal(pool, case.pool())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_scatter_against_one_element_at_a_time(kernels: dict[str, Kernel], name: str, case: Case) -> None:
    """All of the memory is compared: nothing else is written."""
    wanted, pool = case.pool(), case.pool()
    count = reference.scatter(case.spec(wanted), case.views, case.tokens, case.wire())
    assert scattered(kernels[name], case, pool) == count
    assert torch.equal(pool, wanted)


# ---------------------------------------------------------------- casts


def cast_by(kernel: Kernel, bits: torch.Tensor, have: KVDType, want: KVDType) -> tuple[torch.Tensor, int]:
    view = bits.view(torch_dtype(have)).view(1, len(bits), 1, 1)
    staging = bytearray(len(bits) * want.size_bytes)
    bound = kernel.bind(CopySpec((view,), (0,), have, want, KVOrder.NHD))
    clamped = bound.gather(Interval(0, 1), Interval(0, len(bits)), memoryview(staging))
    return torch.frombuffer(staging, dtype=INT[want.size_bytes]), clamped


def interesting(have: KVDType) -> torch.Tensor:
    """Every element of a narrow type; of float32 those of narrow types, the ties, and their neighbours."""
    if have is not KVDType.FLOAT32:
        return torch.arange(1 << 8 * have.size_bytes, dtype=torch.int64).to(INT[have.size_bytes])
    numbers = [torch.arange(0, 1 << 32, 1 << 12, dtype=torch.int64), torch.tensor(SPECIAL[have])]
    for narrow in (KVDType.FLOAT16, KVDType.FLOAT8_E4M3FN, KVDType.FLOAT8_E4M3FNUZ):
        values = interesting(narrow).view(torch_dtype(narrow)).to(torch.float32)
        values = values[values.isfinite()].unique()
        ties = (values[1:].double() + values[:-1].double()) / 2
        numbers.append(torch.cat([values, ties.float()]).view(torch.int32).to(torch.int64) & 0xFFFFFFFF)
    every = torch.cat(numbers)
    return torch.cat([every - 1, every, every + 1]).clamp(0, (1 << 32) - 1).to(torch.int32)


PAIRS = [(have, want) for have in KVDType for want in KVDType if have is not want]


@pytest.mark.parametrize(("have", "want"), PAIRS)
def test_every_kernel_casts_alike(kernels: dict[str, Kernel], have: KVDType, want: KVDType) -> None:
    bits = interesting(have)
    wanted, count = cast_by(kernels["torch"], bits, have, want)
    for name in NAMES[1:]:
        cast, clamped = cast_by(kernels[name], bits, have, want)
        assert clamped == count
        assert torch.equal(cast, wanted), name


@pytest.mark.parametrize(("have", "want"), PAIRS)
def test_torch_casts_as_the_contract_says(have: KVDType, want: KVDType) -> None:
    every = interesting(have)
    bits = every[:: max(1, len(every) // 20011)]  # a prime: no step in line with the bits
    cast, clamped = cast_by(TorchKernel(), bits, have, want)
    pairs = [reference.convert(int(x) & _mask(have), have, None, want, None) for x in bits]
    assert clamped == sum(count for _, count in pairs)
    assert [int(x) & _mask(want) for x in cast] == [bits for bits, _ in pairs]


def _mask(dtype: KVDType) -> int:
    return (1 << 8 * dtype.size_bytes) - 1


# ---------------------------------------------------------------- large ones


def large(cache: Cache, wire_dtype: KVDType, order: KVOrder, *, skew: int = 0, scaled: bool = False) -> Case:
    """Megabytes: streaming stores, several threads, rows longer than a chunk."""
    generator = torch.Generator().manual_seed(3)
    blocks = tuple(torch.randperm(cache.num_blocks, generator=generator).tolist())
    scales = torch.rand(cache.num_views, len(cache.heads), generator=generator) + 0.5 if scaled else None
    tokens = Interval(3, cache.num_blocks * cache.block_size - 2)
    return Case(cache, blocks, wire_dtype, order, scales, None, Interval(0, cache.num_views), tokens, skew)


LARGE = {
    "same": large(
        Cache(KVDType.BFLOAT16, KVOrder.NHD, 2, 70, 16, 8, Interval(0, 8), 128), KVDType.BFLOAT16, KVOrder.NHD
    ),
    "unaligned": large(
        Cache(KVDType.BFLOAT16, KVOrder.NHD, 2, 70, 16, 8, Interval(0, 8), 128), KVDType.BFLOAT16, KVOrder.NHD, skew=33
    ),
    "odd rows": large(
        Cache(KVDType.FLOAT16, KVOrder.HND, 3, 150, 5, 7, Interval(1, 7), 99, packed=True, gap=3),
        KVDType.FLOAT16,
        KVOrder.NHD,
        skew=1,
    ),
    "heads first": large(
        Cache(KVDType.BFLOAT16, KVOrder.HND, 2, 20, 64, 8, Interval(0, 8), 128), KVDType.BFLOAT16, KVOrder.HND
    ),
    "narrowed slice": large(
        Cache(KVDType.FLOAT32, KVOrder.NHD, 2, 70, 16, 8, Interval(2, 6), 128), KVDType.BFLOAT16, KVOrder.NHD, skew=7
    ),
    "scaled": large(
        Cache(KVDType.FLOAT32, KVOrder.HND, 2, 20, 64, 8, Interval(0, 8), 128),
        KVDType.FLOAT8_E4M3FN,
        KVOrder.NHD,
        scaled=True,
    ),
    "one latent": large(
        Cache(KVDType.BFLOAT16, KVOrder.NHD, 4, 30, 64, 1, Interval(0, 1), 576), KVDType.FLOAT32, KVOrder.NHD
    ),
}


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("name", NAMES[1:])
def test_large_ones_against_torch(kernels: dict[str, Kernel], name: str, case: Case) -> None:
    pool = case.pool()
    assert gathered(kernels[name], case, pool) == gathered(kernels["torch"], case, pool)
    wanted = case.pool()
    assert scattered(kernels[name], case, pool) == scattered(kernels["torch"], case, wanted)
    assert torch.equal(pool, wanted)


# ---------------------------------------------------------------- arguments


def bound(kernel: Kernel) -> BoundCopy:
    view = torch.zeros(4, 16, 2, 8)
    return kernel.bind(CopySpec((view, view), (3, 1), KVDType.FLOAT32, KVDType.BFLOAT16, KVOrder.NHD))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("views", "tokens", "size"),
    [
        (Interval(0, 1), Interval(0, 4), 4 * 32 - 1),
        (Interval(0, 3), Interval(0, 4), 3 * 4 * 32),
        (Interval(0, 1), Interval(30, 33), 3 * 32),
    ],
    ids=["too few bytes", "no such view", "no such token"],
)
def test_arguments_that_do_not_fit(
    kernels: dict[str, Kernel], name: str, views: Interval, tokens: Interval, size: int
) -> None:
    copy = bound(kernels[name])
    with pytest.raises(ValueError, match="there are 2 views and 32 tokens"):
        copy.gather(views, tokens, memoryview(bytearray(size)))
    with pytest.raises(ValueError, match="there are 2 views and 32 tokens"):
        copy.scatter(views, tokens, memoryview(bytearray(size)))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_move(kernels: dict[str, Kernel], name: str) -> None:
    assert bound(kernels[name]).gather(Interval(1, 1), Interval(0, 4), memoryview(bytearray())) == 0
    assert bound(kernels[name]).scatter(Interval(0, 2), Interval(4, 4), memoryview(bytearray())) == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"blocks": (0, 4)}, r"\[0, 4\)"),
        ({"blocks": (-1, 0)}, r"\[0, 4\)"),
        ({"views": (torch.zeros(4, 16, 2, 8), torch.zeros(3, 16, 2, 8))}, "view 1"),
        ({"views": (torch.zeros(4, 16, 2, 8, dtype=torch.float16),)}, "float32"),
        ({"views": (torch.zeros(4, 16, 8, 2).transpose(2, 3),)}, "contiguous"),
        ({"wire_scales": torch.ones(1, 2)}, "scales"),
    ],
    ids=["block too high", "block too low", "unlike views", "wrong type", "strided rows", "too few scales"],
)
def test_the_compiled_kernel_trusts_nothing(kernels: dict[str, Kernel], change: dict[str, object], why: str) -> None:
    """There is no bounds check behind it."""
    view = torch.zeros(4, 16, 2, 8)
    fields: dict[str, object] = {"views": (view, view), "blocks": (3, 1)} | change
    spec = CopySpec(cache_dtype=KVDType.FLOAT32, wire_dtype=KVDType.BFLOAT16, wire_order=KVOrder.NHD, **fields)
    with pytest.raises(ValueError, match=why):
        kernels["cpp"].bind(spec)


def test_threads_may_share_a_binding(kernels: dict[str, Kernel]) -> None:
    case = LARGE["odd rows"]
    pool = case.pool()
    wanted, _ = gathered(kernels["torch"], case, pool)
    copy, staging = kernels["cpp"].bind(case.spec(pool)), memoryview(bytearray(len(wanted)))
    views = range(case.views.start, case.views.stop)
    with ThreadPoolExecutor(4) as threads:
        parts = [threads.submit(copy.gather, Interval(v, v + 1), case.tokens, _share(staging, v, views)) for v in views]
    assert [part.result() for part in parts] == [0] * len(views)
    assert bytes(staging) == wanted


def _share(staging: memoryview, view: int, views: range) -> memoryview:
    size = len(staging) // len(views)
    return staging[view * size : (view + 1) * size]
