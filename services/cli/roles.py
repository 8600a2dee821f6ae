"""One process of the mesh: reads the configuration, finds the model and runs the service until it is told to end."""

import asyncio
import errno
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

import msgspec
import uvloop

from common.bus.keys import key_reader
from common.config.load import load_mesh
from common.config.types import InstanceConfig, MeshConfig
from common.errors import ConfigError
from common.hardware import pin_to, threads_for, usable_core_count
from common.logs import configure_logs
from common.messages.control import Role
from services.launch.commands import GATEWAY
from services.launch.errors import LaunchError
from services.launch.lifeline import end_with_parent
from services.launch.model import prepare_model

_NO_ADDRESS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


class ProcessFlags(msgspec.Struct, frozen=True):
    """The flags that gateway, prefill and decode share."""

    config: Path | None
    model_folder: Path | None
    """None: this process finds or prepares the model itself."""
    parent_fd: int | None
    """A pipe whose other end the parent holds: its end is ours."""


def run_gateway_process(flags: ProcessFlags, environ: Mapping[str, str]) -> None:
    """Run the gateway until SIGTERM or SIGINT; KeyboardInterrupt says that it was the latter."""
    from services.gateway.service import run_gateway

    mesh = _load(flags, environ)
    configure_logs(GATEWAY, mesh.log_level, sys.stderr)
    folder = _model_folder(flags, mesh, environ)
    try:
        was_interrupt = uvloop.run(run_gateway(mesh, folder))
    except OSError as error:
        if error.errno not in _NO_ADDRESS:
            raise
        raise LaunchError(
            f"cannot listen at {mesh.gateway.http}: {error}; end what uses it, or give another gateway.http"
        ) from error
    if was_interrupt:
        raise KeyboardInterrupt


def run_instance_process(flags: ProcessFlags, role: Role, name: str | None, environ: Mapping[str, str]) -> None:
    """Run the instance `name` of `role` (None: the only one) as run_gateway_process runs the gateway."""
    mesh = _load(flags, environ)
    instance = find_instance(mesh, role, name)
    configure_logs(instance.id, mesh.log_level, sys.stderr)
    key_reader(mesh.gateway.control_keys, instance.id)()  # that it has none is better told before the model is loaded
    if instance.cpu_affinity is not None:
        pin_to(instance.cpu_affinity)
    threads = threads_for(instance, mesh.instances, usable_core_count())
    instance = msgspec.structs.replace(instance, threads=threads)
    folder = _model_folder(flags, mesh, environ)
    match role:
        case Role.PREFILL:
            from services.prefill.service import run_prefill

            was_interrupt = uvloop.run(run_prefill(mesh, instance, folder))
        case Role.DECODE:
            from services.decode.service import run_decode

            was_interrupt = uvloop.run(run_decode(mesh, instance, folder))
        case _:
            assert_never(role)
    if was_interrupt:
        raise KeyboardInterrupt


def fetch_model(name: str | None, config: Path | None, environ: Mapping[str, str]) -> Path:
    """Prepare the model `name` (None: that of the configuration); its folder."""
    wanted = name if name is not None else load_mesh(config, environ, {}).model
    return asyncio.run(prepare_model(wanted, environ))


def find_instance(mesh: MeshConfig, role: Role, name: str | None) -> InstanceConfig:
    """The instance `name` of `role`, or the only one of that role. Raises ConfigError."""
    of_role = [instance for instance in mesh.instances if instance.role is role]
    found = [instance for instance in of_role if name in (None, instance.id)]
    if len(found) != 1:
        ids = ", ".join(instance.id for instance in of_role) or "none"
        asked = f"the {role.value} instance {name!r} is not" if name else f"which {role.value} instance is not said"
        raise ConfigError(f"{asked} in the configuration, which has {ids}; give one of them with --instance")
    return found[0]


def _load(flags: ProcessFlags, environ: Mapping[str, str]) -> MeshConfig:
    if flags.parent_fd is not None:
        end_with_parent(flags.parent_fd)
    return load_mesh(flags.config, environ, {})


def _model_folder(flags: ProcessFlags, mesh: MeshConfig, environ: Mapping[str, str]) -> Path:
    return flags.model_folder or asyncio.run(prepare_model(mesh.model, environ))
