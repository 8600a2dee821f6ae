"""How well packing, the wire and unpacking overlap: the whole over its slowest stage alone."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import msgspec
import torch

from common.clock import Clock
from services.bench.repeats import Measured, OnStep, interleave
from services.bench.report import Row, Where
from services.bench.transfer.caches import random_blocks
from services.bench.transfer.cases import LayoutCase, TakeCase
from services.bench.transfer.stage import Stage
from services.bench.transfer.stages import pack_all, pack_buffers, segments_of, unpack_all
from services.bench.transfer.taker import Taken
from transfer.binding import Binding
from transfer.kernels.registry import kernel_for
from transfer.limits import TransferLimits
from transfer.memory import PagedMemory


class _Ran(msgspec.Struct, frozen=True):
    """A stage alone."""

    seconds: float


_Sample = _Ran | Taken
_PACK, _WIRE, _UNPACK, _WHOLE = "pack", "wire", "unpack", "whole"


class Pipeline:
    """One size in the layout FULL, without checksums, by every backend that works between processes."""

    def __init__(self, stage: Stage, size_bytes: int, segment_bytes: int, cores: int, clock: Clock) -> None:
        self._stage = stage
        self._size_bytes = size_bytes
        self._segment_bytes = segment_bytes
        self._cores = cores
        self._clock = clock

    async def measure(self, rounds: int, on_step: OnStep) -> list[Row]:
        """A row for each backend."""
        return [await self._measure(scheme, rounds, on_step) for scheme in self._stage.remote]

    async def _measure(self, scheme: str, rounds: int, on_step: OnStep) -> Row:
        case = TakeCase(scheme, self._size_bytes, LayoutCase.FULL, checksum=False)
        given, taken = self._stage.given, self._stage.sinks.memories[case.layout]
        zones = pack_buffers(self._segment_bytes, TransferLimits().landing_zones)
        variants: dict[str, Callable[[], Awaitable[_Sample]]] = {
            _PACK: self._alone(case, given, pack_all, pack_buffers(self._segment_bytes)),
            _UNPACK: self._alone(case, taken, unpack_all, zones),
            _WHOLE: partial(self._stage.taker.take, case),
        }
        if not self._stage.backends[scheme].traits.same_host:
            # Within a host P packs into D's own zones; what the self-test copies there is no stage of a hand-off.
            variants[_WIRE] = partial(self._wire, case)
        samples = await interleave(variants, rounds, lambda label: on_step(f"pipeline, {case}: {label}"))
        return self._row(case, samples)

    def _row(self, case: TakeCase, samples: Mapping[str, Sequence[_Sample]]) -> Row:
        seconds = {name: Measured.of(sample.seconds for sample in found) for name, found in samples.items()}
        whole = seconds.pop(_WHOLE)
        slowest = Measured.of(max(stages) for stages in zip(*(found.values for found in seconds.values()), strict=True))
        cpu = Measured.of(sample.cpu_s / self._cores for sample in samples[_WHOLE] if isinstance(sample, Taken))
        columns: dict[str, float] = {}
        for name, found in seconds.items():
            columns |= found.columns(f"{name}_s")
        return {
            "kind": "pipeline",
            "where": Where.REAL,
            "repeats": len(whole.values),
            "backend": case.scheme,
            "size_bytes": case.size_bytes,
            "layout": case.layout.value,
            "checksum": case.checksum,
            **columns,
            **whole.columns("whole_s"),
            **whole.over(slowest).columns("over_slowest_stage"),
            **whole.over(cpu).columns("over_cpu_bound"),
        }

    def _alone(
        self,
        case: TakeCase,
        memory: PagedMemory,
        run: Callable[..., None],
        buffers: tuple[memoryview, ...],
    ) -> Callable[[], Awaitable[_Sample]]:
        segments = segments_of(case.plan, case.num_tokens, self._segment_bytes)
        blocks = random_blocks(memory, case.num_tokens, random.Random(5))
        binding = Binding(case.plan, memory, blocks, kernel_for(torch.device(memory.layout.device)))

        async def alone() -> _Sample:
            started_at = self._clock.now()
            run(binding, segments, buffers)
            return _Ran(self._clock.now() - started_at)

        return alone

    async def _wire(self, case: TakeCase) -> _Sample:
        """By the library's own self-test of the link, which neither packs nor unpacks; scaled to as many bytes."""
        sink = self._stage.sinks.sink(case.layout, checksum=False)
        figures = (await sink.meet((self._stage.remote[case.scheme],))).figures[0]
        return _Ran(case.wire_bytes / figures.bytes_per_s)
