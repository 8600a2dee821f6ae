"""A mesh as compose files: one for each machine, and what all containers read. Pure; nothing is read or written."""

from typing import Any

import yaml

from common.config.addresses import parse_http
from common.config.types import MeshConfig
from common.errors import ConfigError
from common.messages.control import Role
from services.launch.commands import GATEWAY
from services.launch.compose_hosts import HTTP_PORT, HostPlan, control_port, plan_hosts
from services.launch.compose_mesh import container_mesh, profile_files
from services.launch.compose_services import KEYS_SERVICE, MODEL, Composer
from services.launch.compose_settings import ComposeFile, ComposeSettings, ComposeStack

WRITTEN_BY = "# Written by `pdmesh compose`; what you change here is lost when it is written again."
"""The first line of every file."""


def compose_stack(config: MeshConfig, settings: ComposeSettings) -> ComposeStack:
    """Everything to write for `config`, which has been checked and whose TLS files are absolute paths.

    Raises ConfigError for a mesh that cannot be run so, with what to change.
    """
    for name, work in ((MODEL, "prepares the model"), (KEYS_SERVICE, "makes keys")):
        if any(instance.id == name for instance in config.instances):
            raise ConfigError(f"an instance is called {name!r}, as the service that {work} is; rename it")
    hosts = plan_hosts(config, settings.gateway_host)
    gateway_host = None if len(hosts) == 1 else hosts[0].name
    return ComposeStack(
        mesh=container_mesh(config, settings, is_alone=gateway_host is None),
        profiles=profile_files(config),
        files=tuple(_file(Composer(config, settings, host, gateway_host), host, config, hosts) for host in hosts),
    )


def compose_text(file: ComposeFile) -> str:
    """The file itself."""
    notes = "".join(f"# {line}\n" if line else "#\n" for line in file.notes)
    return f"{WRITTEN_BY}\n#\n{notes}{yaml.safe_dump(file.document, sort_keys=False, width=120)}"


def _file(composer: Composer, host: HostPlan, config: MeshConfig, hosts: tuple[HostPlan, ...]) -> ComposeFile:
    document: dict[str, Any] = {
        "services": composer.services(),
        "networks": composer.networks(),
        "volumes": {name: {} for name in composer.volumes()},
    }
    notes = _notes_alone(config) if composer.is_alone else _notes_of_several(config, host, hosts)
    return ComposeFile(host.name, document, (*notes, *_notes_of_devices(host)))


def _notes_alone(config: MeshConfig) -> tuple[str, ...]:
    return (
        f"The API is {_where(config)}.",
        "Instances join, and KV moves, on networks that lead to no other machine.",
    )


def _notes_of_several(config: MeshConfig, host: HostPlan, hosts: tuple[HostPlan, ...]) -> tuple[str, ...]:
    """What must be open between the machines, and what protects it."""
    others = ", ".join(str(other.name) for other in hosts if other != host)
    return (
        f"The part of {host.name!r} of a mesh on {len(hosts)} machines; the others: {others}.",
        "",
        *_doors(config, host),
        "",
        *_protection_of_control(config, host, hosts[0]),
        "KV goes between the machines under TLS, both sides with certificates."
        if config.transfer.tls is not None
        else "KV goes between the machines in the clear, since transfer.trusted_network says that nobody listens.",
        "",
        f"On this machine {host.name!r} must mean the address that the others use, not 127.0.1.1.",
    )


def _protection_of_control(config: MeshConfig, host: HostPlan, first: HostPlan) -> tuple[str, ...]:
    folder = config.gateway.control_keys
    if folder is None:
        return (
            f"NOTHING PROTECTS PORT {control_port(config)} OF {first.name!r}, as gateway.insecure wants it:",
            "who reaches it can join the mesh and read every prompt. Let a firewall open it to these machines alone.",
        )
    processes = (*((GATEWAY,) if host.has_gateway else ()), *(instance.id for instance in host.instances))
    return (
        "Instances join encrypted, each with its own key. Of the folders that `pdmesh keys init` made, this machine",
        "needs these and no others; their owner is the containers' user (chown -R 10001:10001):",
        *(f"  {folder}/{process}" for process in processes),
    )


def _where(config: MeshConfig) -> str:
    host, port = parse_http(config.gateway.http)
    if port == 0:
        return f"at a free port of {host}: `docker compose port gateway {HTTP_PORT}` tells"
    return f"at {config.gateway.http}"


def _doors(config: MeshConfig, host: HostPlan) -> tuple[str, ...]:
    doors: tuple[str, ...] = ()
    if host.has_gateway:
        doors += (
            f"  to whoever may ask: the API, {_where(config)}",
            f"  to the other machines: TCP {control_port(config)}, where instances join",
        )
    if any(instance.role is Role.PREFILL for instance in host.instances) and "tcp" in config.transfer.backends:
        doors += ("  to machines with decode instances: TCP ip_local_port_range (32768-60999), where KV is served",)
    return ("What must be open:", *doors) if doors else ("Nothing has to be open here.",)


def _notes_of_devices(host: HostPlan) -> tuple[str, ...]:
    kinds = {instance.device.partition(":")[0] for instance in host.instances}
    notes: tuple[str, ...] = ()
    if "cuda" in kinds:
        notes += ("CUDA: the engine needs the NVIDIA container toolkit.",)
    if "rocm" in kinds:
        notes += (
            "ROCm: /dev/kfd and /dev/dri belong to groups whose numbers differ between machines. Give this machine's:",
            "  VIDEO_GROUP=$(getent group video | cut -d: -f3) RENDER_GROUP=$(getent group render | cut -d: -f3)",
        )
    return notes
