"""Kernels by themselves, beside torch's `copy_`."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

import msgspec
import torch

from common.clock import Clock
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from services.bench.repeats import Measured, OnStep, interleave
from services.bench.report import Row, Where
from services.bench.transfer.caches import random_blocks, touched_memory
from services.bench.transfer.cases import SOURCE
from services.bench.transfer.stages import whole_of
from transfer.binding import Binding
from transfer.kernels.base import Kernel
from transfer.kernels.registry import kernel_for
from transfer.kernels.torch_kernel import TorchKernel
from transfer.memory import torch_dtype
from transfer.plan import plan_copy

THREADS = (1, 2)
_COPY = "copy_"

_BF16 = msgspec.structs.replace(SOURCE, dtype=KVDType.BFLOAT16)


class Conversion(msgspec.Struct, frozen=True):
    """A pair of layouts."""

    source: KVLayout
    target: KVLayout


CONVERSIONS: Mapping[str, Conversion] = MappingProxyType(
    {
        "identity": Conversion(_BF16, _BF16),
        "reorder": Conversion(_BF16, msgspec.structs.replace(_BF16, block_size=64, order=KVOrder.HND)),
        "full": Conversion(
            SOURCE,
            msgspec.structs.replace(_BF16, block_size=64, order=KVOrder.HND, heads=Interval(4, 8)),
        ),
    }
)
"""reorder: block size and order. full: these, a head slice, and float32→bfloat16 while packing."""


class Pass(msgspec.Struct, frozen=True):
    """One kernel's way over the memory of one side."""

    kernel: str
    conversion: str
    action: str
    """pack (P) or unpack (D)."""
    moved_bytes: int
    """Read + written."""

    def __str__(self) -> str:
        return f"kernel {self.kernel}, {self.action} {self.conversion}"


_PAUSE_S = 0.02
"""Before each pass: torch's threads spin for milliseconds after one, on the core that another's second thread needs."""


class _Work(msgspec.Struct, frozen=True):
    """A pass, and how to do it."""

    name: Pass
    run: Callable[[], object]


async def measure_kernels(size_bytes: int, rounds: int, clock: Clock, on_step: OnStep) -> list[Row]:
    """Every CPU kernel × conversion × pack and unpack, with each number of threads, beside `copy_` with as many."""
    rows: list[Row] = []
    for threads in THREADS:
        with _torch_threads(threads):
            rows += await _with_threads(threads, size_bytes, rounds, clock, on_step)
    return rows


async def _with_threads(threads: int, size_bytes: int, rounds: int, clock: Clock, on_step: OnStep) -> list[Row]:
    fastest = kernel_for(torch.device("cpu"), threads)
    kernels = {kernel.name: kernel for kernel in (TorchKernel(), fastest)}
    copy = _copy(size_bytes)
    works = [copy, *(work for name in CONVERSIONS for work in _works(name, tuple(kernels.values()), size_bytes))]
    variants: dict[Pass, Callable[[], Awaitable[float]]] = {
        work.name: partial(_timed, work.run, clock) for work in works
    }
    samples = await interleave(variants, rounds, on_step)
    rates = {
        name: Measured.of(name.moved_bytes / 1e9 / seconds for seconds in found) for name, found in samples.items()
    }
    return [_row(name, threads, rates[name], rates[copy.name]) for name in rates]


async def _timed(run: Callable[[], object], clock: Clock) -> float:
    await asyncio.sleep(_PAUSE_S)
    started_at = clock.now()
    run()
    return clock.now() - started_at


def _copy(size_bytes: int) -> _Work:
    elements = size_bytes // 2
    source = torch.ones(elements, dtype=torch_dtype(KVDType.BFLOAT16))
    target = torch.zeros_like(source)
    return _Work(Pass(_COPY, "identity", "copy", 2 * size_bytes), lambda: target.copy_(source))


def _works(name: str, kernels: Sequence[Kernel], size_bytes: int) -> Iterator[_Work]:
    conversion = CONVERSIONS[name]
    plan, rng = plan_copy(conversion.source, conversion.target), random.Random(3)
    moved_heads = len(conversion.target.heads)
    num_tokens = size_bytes * len(conversion.source.heads) // (conversion.source.token_bytes * moved_heads)
    wire_bytes, part = plan.payload_bytes(num_tokens), whole_of(plan, num_tokens)
    staging = memoryview(bytearray(wire_bytes))
    given, taken = (touched_memory(layout, num_tokens) for layout in (plan.source, plan.target))
    tables = [random_blocks(memory, num_tokens, rng) for memory in (given, taken)]
    in_target = num_tokens * plan.target.token_bytes
    for kernel in kernels:
        giver, taker = (
            Binding(plan, memory, table, kernel) for memory, table in zip((given, taken), tables, strict=True)
        )
        yield _Work(Pass(kernel.name, name, "pack", size_bytes + wire_bytes), partial(giver.pack, part, staging))
        yield _Work(Pass(kernel.name, name, "unpack", wire_bytes + in_target), partial(taker.unpack, part, staging))


def _row(name: Pass, threads: int, rate: Measured, copy: Measured) -> Row:
    return {
        "kind": "kernel",
        "where": Where.REAL,
        "repeats": len(rate.values),
        "kernel": name.kernel,
        "conversion": name.conversion,
        "action": name.action,
        "threads": threads,
        "moved_bytes": name.moved_bytes,
        **rate.columns("read_written_gb_per_s"),
        **rate.over(copy).columns("over_copy"),
    }


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
