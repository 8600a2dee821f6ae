"""The meshes that serve the slice, each with the prefix cache and without."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path

import msgspec

from common.clock import Clock
from common.config.load import check_mesh
from common.config.types import DType, GatewayConfig, InstanceConfig, MeshConfig
from common.ids import InstanceId
from common.messages.control import Role
from common.messages.operator import InstanceList
from services.bench.gateway_answers import read_answer
from services.bench.load.run import run_load
from services.bench.load.stream import LoadRequest, StreamTimes
from services.bench.repeats import interleave
from services.launch.local import LaunchOptions, LocalMesh

_DEADLINE_S = 3600.0


class Meshes(msgspec.Struct, frozen=True):
    """What is started."""

    model: str
    model_folder: Path
    dtype: DType
    kv_memory: str
    block_size: int = 8
    cores: tuple[int, int] = (0, 1)

    def config(self, system: str, *, prefix_cache: bool) -> MeshConfig:
        """`pd`: a P and a D. `two_d`: two D that serve whole requests. Raises ConfigError."""
        roles = {"pd": (("p0", Role.PREFILL), ("d0", Role.DECODE)), "two_d": (("d0", Role.DECODE), ("d1", Role.DECODE))}
        instances = tuple(
            InstanceConfig(
                id=InstanceId(name),
                role=role,
                threads=1,
                cpu_affinity=(core,),
                block_size=self.block_size,
                kv_memory=self.kv_memory,
                prefix_cache=prefix_cache,
            )
            for core, (name, role) in zip(self.cores, roles[system], strict=True)
        )
        gateway = GatewayConfig(
            http="127.0.0.1:0", control="tcp://127.0.0.1:0", queue=4096, deadline_s=_DEADLINE_S, traces=0
        )
        return check_mesh(
            MeshConfig(
                model=self.model,
                dtype=self.dtype,
                policy="fixed",
                split="full" if system == "pd" else 0,
                gateway=gateway,
                instances=instances,
            )
        )


class Served(msgspec.Struct, frozen=True):
    """What came of all variants."""

    answers: Mapping["Variant", tuple[list[StreamTimes], ...]]
    """Of each, a list for each round."""
    blocks: Mapping[str, int]
    """KV blocks of what a system finds beginnings in: of P in `pd`, of both D in `two_d`."""


class Variant(msgspec.Struct, frozen=True):
    """One mesh that is measured."""

    system: str
    prefix_cache: bool

    def __str__(self) -> str:
        return f"{self.system}, {'with' if self.prefix_cache else 'without'} prefix cache"


async def run_variants(
    meshes: Meshes,
    variants: tuple[Variant, ...],
    load: Callable[[int], tuple[LoadRequest, ...]],
    rounds: int,
    environ: Mapping[str, str],
    clock: Clock,
    on_step: Callable[[str], None],
) -> Served:
    """Every variant under load(0), load(1), …, interleaved: the first time to warm up. Raises PdmeshError."""
    async with AsyncExitStack() as stack:
        runs, blocks = {}, dict[str, int]()
        for variant in variants:
            on_step(f"starting {variant}")
            config = meshes.config(variant.system, prefix_cache=variant.prefix_cache)
            options = LaunchOptions(model_folder=meshes.model_folder)
            mesh = await stack.enter_async_context(LocalMesh(config, environ=environ, clock=clock, options=options))
            blocks[variant.system] = await _blocks(mesh.url, Role.PREFILL if variant.system == "pd" else Role.DECODE)
            runs[variant] = partial(_serve, mesh, load, count(), clock)
        return Served(await interleave(runs, rounds, on_step), blocks)


async def _blocks(url: str, role: Role) -> int:
    """KV blocks of all instances of `role`. Raises BenchError."""
    found = await read_answer(url, "/instances", InstanceList)
    return sum(info.load.blocks_total for info in found.instances if info.member.role is role)


async def _serve(
    mesh: LocalMesh, load: Callable[[int], tuple[LoadRequest, ...]], rounds: "count[int]", clock: Clock
) -> list[StreamTimes]:
    return await run_load(mesh.url, mesh.config.model, load(next(rounds)), clock, timeout_s=_DEADLINE_S)
