"""The command lines and environments of the mesh's processes (pure)."""

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from common.config.sources import PREFIX, RESERVED
from common.config.types import MeshConfig

GATEWAY = "gateway"
PROGRAM = (sys.executable, "-m", "services.cli.main")
"""What runs a process of the mesh."""
MODEL_PROGRAM = (sys.executable, "-m", "services.engine.loading")
"""What prepares a model: takes its name, shows progress on stderr, prints the folder as the last line on stdout."""
BAD_CONFIGURATION = 2
"""What these programs exit with when their configuration cannot be used."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class ProcessPlan(msgspec.Struct, frozen=True):
    """One process of a local mesh: its name (an instance's id, or "gateway"), command line and environment."""

    name: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]


def plan_processes(
    config: MeshConfig,
    *,
    program: tuple[str, ...],
    config_file: Path,
    model_folder: Path,
    parent_fd: int,
    environ: Mapping[str, str],
) -> tuple[ProcessPlan, ...]:
    """The gateway, then every instance of a settled `config`, which stands in `config_file`."""
    common = ("--config", str(config_file), "--model-folder", str(model_folder), "--parent-fd", str(parent_fd))
    gateway = ProcessPlan(GATEWAY, (*program, "gateway", *common), child_environ(environ, 1))
    workers = (
        ProcessPlan(
            instance.id,
            (*program, instance.role.value, *common, "--instance", instance.id),
            child_environ(environ, instance.threads or 1),
        )
        for instance in config.instances
    )
    return (gateway, *workers)


def child_environ(environ: Mapping[str, str], threads: int) -> dict[str, str]:
    """`environ` for a process with so many threads, without the configuration that its file already holds."""
    kept = {name: value for name, value in environ.items() if not name.startswith(PREFIX) or name in RESERVED}
    return kept | dict.fromkeys(_THREAD_VARIABLES, str(threads)) | {"PYTHONUNBUFFERED": "1"}
