"""Profiles for a benchmark, measured in the same run on a mesh that does nothing else."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from common.clock import SystemClock
from common.config.types import MeshConfig
from common.ids import InstanceId
from services.bench.repeats import OnStep
from services.cli.profile import ALL, ProfileFlags, run_profile
from services.launch.local import LaunchOptions, LocalMesh


async def measured_profiles(
    config: MeshConfig,
    model_folder: Path,
    where: Path,
    environ: Mapping[str, str],
    on_step: OnStep,
    *,
    repeats: int,
    longest: int,
    shows: bool,
) -> dict[InstanceId, Path]:
    """The files in the folder `where`, by instance of a mesh that is started for it. Raises PdmeshError.

    The quick grid, with prompts and contexts up to `longest` tokens; `shows` what was found on stderr.
    """
    on_step("starting a mesh to profile")
    options = LaunchOptions(model_folder=model_folder)
    async with LocalMesh(config, environ=environ, clock=SystemClock(), options=options) as mesh:
        on_step("profiling")
        flags = ProfileFlags(mesh.url, (ALL,), where, None, repeats, True, longest)
        await asyncio.to_thread(run_profile, flags, Console(stderr=True, quiet=not shows))
    return {instance.id: where / f"{instance.id}.json" for instance in config.instances}
