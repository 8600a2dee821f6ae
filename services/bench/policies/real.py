"""The systems on this machine: four meshes of processes, the same requests, in turn."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from common.clock import Clock
from services.bench.load.run import LoadFigures, figures_of, run_load
from services.bench.load.stream import LoadRequest, StreamTimes
from services.bench.policies.systems import Devices, System, mesh_of
from services.bench.repeats import Measured, interleave
from services.launch.local import LaunchOptions, LocalMesh
from services.simulator.workload.requests import Workload

_FIRST_PLAIN_TOKEN = 1000
"""Ids below may be special ones or single bytes; prompts are made of words. Of a small vocabulary the upper half."""


class RealRun(msgspec.Struct, frozen=True):
    """What is run."""

    devices: Devices
    model_folder: Path
    profiles: Mapping[str, Path]
    loads: Mapping[str, Workload]
    """By name of the load; the arrivals are in the workloads."""
    systems_of: Mapping[str, tuple[System, ...]]
    """By name of the load: those that can keep up with it."""
    rounds: int
    dp_weight: float
    vocab_size: int


class Served(msgspec.Struct, frozen=True):
    """All rounds of one system under one load."""

    system: System
    load: str
    figures: tuple[LoadFigures, ...]
    texts: tuple[str, ...]
    """The answers of the first round, in order of the requests."""

    def measured(self, column: str) -> Measured:
        """One figure over the rounds."""
        return Measured.of(float(getattr(figures, column)) for figures in self.figures)


async def run_real(
    run: RealRun, environ: Mapping[str, str], clock: Clock, on_step: Callable[[str], None]
) -> list[Served]:
    """Every system under every load, interleaved. Raises PdmeshError.

    All meshes stay up from begin to end: one that gets no requests costs its heartbeats.
    """
    async with AsyncExitStack() as stack:
        meshes: dict[System, LocalMesh] = {}
        for system in System:
            on_step(f"starting {system}")
            config = mesh_of(system, run.devices, run.profiles, dp_weight=run.dp_weight)
            options = LaunchOptions(model_folder=run.model_folder)
            mesh = LocalMesh(config, environ=environ, clock=clock, options=options)
            meshes[system] = await stack.enter_async_context(mesh)
        variants = {
            (system, load): partial(_serve, meshes[system], load_requests(workload, run.vocab_size), clock)
            for load, workload in run.loads.items()
            for system in run.systems_of[load]
        }
        samples = await interleave(variants, run.rounds, on_step)
    return [
        Served(system, load, tuple(map(figures_of, answers)), tuple(answer.text for answer in answers[0]))
        for (system, load), answers in samples.items()
    ]


def load_requests(workload: Workload, vocab_size: int, seed: int = 1) -> tuple[LoadRequest, ...]:
    """Prompts of the workload's lengths, of random tokens: no two share a beginning."""
    random = np.random.default_rng(seed)
    lowest = min(_FIRST_PLAIN_TOKEN, vocab_size // 2)
    return tuple(
        LoadRequest(
            request.arrival_s,
            tuple(random.integers(lowest, vocab_size, request.prompt_tokens).tolist()),
            request.output_tokens,
        )
        for request in workload.requests
    )


async def _serve(mesh: LocalMesh, requests: Sequence[LoadRequest], clock: Clock) -> list[StreamTimes]:
    return await run_load(mesh.url, mesh.config.model, requests, clock)
