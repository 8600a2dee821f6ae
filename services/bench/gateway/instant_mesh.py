"""A mesh of this machine whose gateway is the real one and whose instances answer at once."""

import asyncio
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from common.clock import Clock
from common.config.types import GatewayConfig, InstanceConfig, MeshConfig
from common.ids import InstanceId
from common.messages.control import Role
from services.bench.gateway.questions import MODEL
from services.bench.gateway.system import PDMESH, System
from services.bench.transfer.errors import BenchError
from services.launch.commands import GATEWAY
from services.launch.local import LaunchOptions, LocalMesh

_PROGRAM = (sys.executable, "-m", "services.bench.gateway.instant_worker")
_MODEL_PROGRAM = (sys.executable, "-m", "services.engine.twin.deterministic_model")
_MOST_AT_ONCE = 64


def instant_config() -> MeshConfig:
    """One prefill and one decode instance, every prompt computed by the former: what `pdmesh up` starts by default.

    But for the room: at both there is enough for the most connections, so that no request waits for another. What is
    measured is the gateway, and not the round trip of a worker that takes two prompts at a time.
    """
    return MeshConfig(
        model=MODEL,
        gateway=GatewayConfig(http="127.0.0.1:0", control="tcp://127.0.0.1:0", prefill_slots=_MOST_AT_ONCE),
        log_level="warning",
        instances=(
            InstanceConfig(id=InstanceId("p0"), role=Role.PREFILL, threads=1, kv_memory="1MiB"),
            InstanceConfig(id=InstanceId("d0"), role=Role.DECODE, threads=1, kv_memory="1MiB", max_batch=_MOST_AT_ONCE),
        ),
    )


def instant_mesh(model_folder: Path, environ: Mapping[str, str], clock: Clock) -> LocalMesh:
    """The mesh, not started."""
    options = LaunchOptions(program=_PROGRAM, model_folder=model_folder, ready_timeout_s=60.0)
    return LocalMesh(instant_config(), environ=environ, clock=clock, options=options)


def mesh_system(mesh: LocalMesh) -> System:
    """A mesh that has started."""
    settings = "one instant P, one instant D, split full"
    return System(PDMESH, version(PDMESH), settings, mesh.url, mesh.pid(GATEWAY))


async def write_model(folder: Path) -> Path:
    """Write the model without weights, whose tokens are bytes, and return its folder. Raises BenchError."""
    process = await asyncio.create_subprocess_exec(*_MODEL_PROGRAM, str(folder))
    if await process.wait() != 0:
        raise BenchError(f"the model could not be written to {str(folder)!r}; the reason stands above")
    return folder
