"""Meshes of this machine, each as its mesh.yaml describes it, that serve the same requests in turn."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from common.clock import Clock
from common.config.load import check_mesh, load_mesh
from common.config.types import MeshConfig
from common.errors import ConfigError
from services.bench.load.run import LoadFigures, figures_of, run_load
from services.bench.load.stream import LoadError, LoadRequest, StreamTimes
from services.bench.policies.real import load_requests
from services.bench.repeats import Measured, interleave
from services.launch.local import LaunchOptions, LocalMesh
from services.simulator.workload.requests import Workload

_FREE_HTTP, _FREE_CONTROL = "127.0.0.1:0", "tcp://127.0.0.1:0"
_DEADLINE_S = 3600.0


class NamedMesh(msgspec.Struct, frozen=True):
    """One mesh to measure."""

    name: str
    config: MeshConfig


class MeshRun(msgspec.Struct, frozen=True):
    """What is run: `workload`, which has the arrivals, on each of `meshes`, `rounds` times."""

    meshes: tuple[NamedMesh, ...]
    model_folder: Path
    workload: Workload
    rounds: int
    vocab_size: int


class MeshServed(msgspec.Struct, frozen=True):
    """All rounds of one mesh."""

    mesh: NamedMesh
    figures: tuple[LoadFigures, ...]
    texts: tuple[str, ...]
    """The answers of the first round, in order of the requests."""

    def measured(self, column: str) -> Measured:
        """One of the figures over the rounds."""
        return Measured.of(float(getattr(figures, column)) for figures in self.figures)


def load_meshes(files: Sequence[Path], environ: Mapping[str, str]) -> tuple[NamedMesh, ...]:
    """The meshes of `files`, named by the stems of these, or by the whole paths where two stems are equal.

    Raises ConfigError for what cannot be used, and for meshes that do not serve one model: what they do could not be
    compared.
    """
    configs = [load_mesh(file, environ, {}) for file in files]
    for file, config in zip(files[1:], configs[1:], strict=True):
        if config.model != configs[0].model:
            raise ConfigError(
                f"{file} serves {config.model!r} and {files[0]} serves {configs[0].model!r}; "
                "give meshes of one model, or measure them one at a time"
            )
    stems = Counter(file.stem for file in files)
    names = [file.stem if stems[file.stem] == 1 else str(file) for file in files]
    if len(set(names)) < len(names):
        raise ConfigError(f"--mesh names one file twice: {', '.join(names)}; give each once")
    return tuple(NamedMesh(name, config) for name, config in zip(names, configs, strict=True))


def bench_config(config: MeshConfig, requests: int) -> MeshConfig:
    """`config` on free ports, so that meshes can be up beside each other, with a queue that takes all `requests` and a
    deadline that none of them meets. The rounds send the same prompts, and each is to be served as the first time: no
    prefix is kept. Raises ConfigError.
    """
    instances = [msgspec.structs.replace(instance, prefix_cache=False) for instance in config.instances]
    gateway = msgspec.structs.replace(
        config.gateway,
        http=_FREE_HTTP,
        control=_FREE_CONTROL,
        queue=max(config.gateway.queue, requests),
        deadline_s=max(config.gateway.deadline_s, _DEADLINE_S),
    )
    return check_mesh(msgspec.structs.replace(config, gateway=gateway, instances=tuple(instances)))


async def run_meshes(
    run: MeshRun, environ: Mapping[str, str], clock: Clock, on_step: Callable[[str], None]
) -> list[MeshServed]:
    """Every mesh under the load, interleaved; in the order of `run.meshes`. Raises PdmeshError.

    All stay up from begin to end: one that gets no requests costs its heartbeats.
    """
    requests = load_requests(run.workload, run.vocab_size)
    async with AsyncExitStack() as stack:
        variants = {}
        for mesh in run.meshes:
            on_step(f"starting {mesh.name}")
            config = bench_config(mesh.config, len(requests))
            options = LaunchOptions(model_folder=run.model_folder)
            local = await stack.enter_async_context(LocalMesh(config, environ=environ, clock=clock, options=options))
            variants[mesh.name] = partial(serve_load, local, requests, clock)
        samples = await interleave(variants, run.rounds, on_step)
    return [
        MeshServed(
            mesh,
            tuple(map(figures_of, samples[mesh.name])),
            tuple(answer.text for answer in samples[mesh.name][0]),
        )
        for mesh in run.meshes
    ]


async def serve_load(mesh: LocalMesh, requests: Sequence[LoadRequest], clock: Clock) -> list[StreamTimes]:
    """The answers of a mesh. Raises LoadError, the first of several."""
    try:
        return await run_load(mesh.url, mesh.config.model, requests, clock, timeout_s=_DEADLINE_S)
    except* LoadError as errors:
        error = errors.exceptions[0]
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from None
