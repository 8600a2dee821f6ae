"""The whole benchmark of the engine: systems in turn, every workload, three phases, one report."""

import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from common.clock import Clock
from services.bench.engine.bounds import measure_bounds
from services.bench.engine.errors import BenchError
from services.bench.engine.gguf_file import write_gguf
from services.bench.engine.loads import Load
from services.bench.engine.system import System
from services.bench.occasion import this_occasion
from services.bench.repeats import Measured, OnStep, interleave
from services.bench.report import Report, Row, Where

_PEERS = Path(__file__).parent / "peers"
OURS = "pdmesh"


class EngineBench(msgspec.Struct, frozen=True):
    """What to measure, and how."""

    command: str
    folder: Path
    """The prepared model."""
    threads: int
    rounds: int
    with_peers: bool
    llama_python: Path | None
    """The interpreter that can import llama_cpp; None: this one."""
    dtype: str = "bfloat16"


class Sample(msgspec.Struct, frozen=True):
    """One round of one system and workload: seconds of all of it, and of the prompts alone."""

    whole_s: float
    prefill_s: float


class Phase(msgspec.Struct, frozen=True):
    """Tokens per second of one part of a workload."""

    name: str
    tokens_per_s: Measured


async def run_engine_bench(
    bench: EngineBench, workloads: Sequence[Load], clock: Clock, on_step: OnStep, on_note: OnStep
) -> Report:
    """Raises BenchError where our own engine cannot be measured; a peer that cannot is left out, with a note."""
    occasion = this_occasion()
    on_step("bounds of the machine")
    bounds = measure_bounds(bench.threads, bench.rounds, clock)
    rows: list[Row] = [_bounds_row(bench, bounds)]
    async with AsyncExitStack() as stack:
        systems = await _systems(bench, stack, on_note)
        for load in workloads:
            variants = {system.name: _trial(system, load) for system in systems}
            samples = await interleave(variants, bench.rounds, partial(_say, on_step, load))
            rows += _rows(bench, load, systems, samples)
    return occasion.report(bench.command, rows, summary(rows))


def _say(on_step: OnStep, load: Load, name: str) -> None:
    on_step(f"{load.name}: {name}")


async def _systems(bench: EngineBench, stack: AsyncExitStack, on_note: OnStep) -> list[System]:
    threads = str(bench.threads)
    ours = [
        sys.executable,
        "-m",
        "services.engine.measuring.trial",
        str(bench.folder),
        "--dtype",
        bench.dtype,
        "--threads",
        threads,
    ]
    systems = [await _started(ours, stack)]
    if not bench.with_peers:
        return systems
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pdmesh-bench-")))
    theirs = [sys.executable, str(_PEERS / "transformers_peer.py"), str(bench.folder), bench.dtype, threads]
    llama = [str(bench.llama_python or sys.executable), str(_PEERS / "llama_cpp_peer.py"), str(scratch / "model.gguf")]
    for name, command in (("transformers", theirs), ("llama.cpp", [*llama, threads])):
        try:
            if name == "llama.cpp":
                write_gguf(bench.folder, scratch / "model.gguf")
            systems.append(await _started(command, stack))
        except BenchError as error:
            on_note(f"without {name}: {error}")
    return systems


async def _started(command: Sequence[str], stack: AsyncExitStack) -> System:
    system = await System.start(command)
    stack.push_async_callback(system.close)
    return system


def _trial(system: System, load: Load) -> Callable[[], Awaitable[Sample]]:
    async def sample() -> Sample:
        prefill_s = await system.seconds(load.prefill_only())
        return Sample(whole_s=await system.seconds(load), prefill_s=prefill_s)

    return sample


def phases(load: Load, samples: Sequence[Sample]) -> tuple[Phase, ...]:
    """Tokens per second: generated ones over the whole; the prompts'; generated ones over what is left of the whole.

    The prefill is a run of its own with one token for each request, so decode is a difference of two runs.
    """
    return (
        Phase("end_to_end", Measured.of(sum(load.outputs) / sample.whole_s for sample in samples)),
        Phase("prefill", Measured.of(load.prompt_tokens / sample.prefill_s for sample in samples)),
        Phase("decode", Measured.of(load.decode_tokens / _decode_s(sample) for sample in samples)),
    )


def _decode_s(sample: Sample) -> float:
    """Never below a hundredth of the whole: a busy machine may take longer for a part than for all of it."""
    return max(sample.whole_s - sample.prefill_s, sample.whole_s / 100)


def _rows(
    bench: EngineBench, load: Load, systems: Sequence[System], samples: Mapping[str, Sequence[Sample]]
) -> list[Row]:
    measured = {system.name: phases(load, samples[system.name]) for system in systems}
    rows: list[Row] = []
    for system in systems:
        for own, mine in zip(measured[OURS], measured[system.name], strict=True):
            row: dict[str, str | int | float | bool | None] = {
                "kind": "engine",
                "where": Where.REAL.value,
                "repeats": bench.rounds,
                "system": system.name,
                "version": system.version,
                "workload": load.name,
                "requests": len(load.prompts),
                "prompt_tokens": load.prompt_tokens,
                "output_tokens": sum(load.outputs),
                "phase": mine.name,
                "dtype": bench.dtype,
                "threads": bench.threads,
            }
            row |= mine.tokens_per_s.columns("tokens_per_s")
            if system.name != OURS:
                row |= own.tokens_per_s.over(mine.tokens_per_s).columns("pdmesh_over")
            rows.append(row)
    return rows


def _bounds_row(bench: EngineBench, bounds: Mapping[str, Measured]) -> Row:
    row: dict[str, str | int | float | bool | None] = {
        "kind": "bounds",
        "where": Where.REAL.value,
        "repeats": bench.rounds,
        "threads": bench.threads,
    }
    for name, measured in bounds.items():
        row |= measured.columns(name)
    return row


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """How many times a peer's rate ours is: workload A end to end by the peer's name, and every workload and phase."""
    found: dict[str, float] = {}
    for row in rows:
        ratio = row.get("pdmesh_over")
        if not isinstance(ratio, float):
            continue
        name = f"pdmesh_over_{str(row['system']).replace('.', '_')}"
        found[f"{name}_{row['workload']}_{row['phase']}"] = ratio
        if (row["workload"], row["phase"]) == ("A", "end_to_end"):
            found[name] = ratio
    return found
