"""The mesh.yaml that containers read: the user's, with addresses, devices and paths as they are in there."""

from collections.abc import Mapping

import msgspec

from common.config.load import check_mesh
from common.config.types import InstanceConfig, MeshConfig, TlsConfig, TransferConfig
from common.errors import ConfigError
from services.launch.compose_hosts import CONTROL_PORT, HTTP_PORT
from services.launch.compose_settings import ComposeSettings

FILES = "/etc/pdmesh"
"""Where the folder of files is seen."""
MESH_FILE = "mesh.yaml"
PROFILES = "profiles"
SOCKETS = "/run/pdmesh"
"""The folder in which the shm backends of one machine meet: its containers have network namespaces of their own."""
TLS = "/run/pdmesh-tls"
KEYS = "/run/pdmesh-keys"
"""Where each process finds the folder of its keys for the control port."""
API_KEYS = "/run/pdmesh-api-keys"
"""Where the gateway finds the file of its clients' keys."""


def container_mesh(config: MeshConfig, settings: ComposeSettings, *, is_alone: bool) -> MeshConfig:
    """`config` for containers, on one machine or several.

    What differs between containers (where the gateway is, under which name KV is served) is not in it: they are told
    by variables.  Raises ConfigError for several machines between which KV or the control port would be unprotected.
    """
    if not is_alone and config.gateway.control_keys is None and not config.gateway.insecure:
        raise ConfigError(
            "instances are on several machines, and whoever reaches the control port could join and read prompts: run "
            "`pdmesh keys init --out keys --config MESH.YAML` and set gateway.control_keys: keys, or set "
            "gateway.insecure: true if nobody else is on their network"
        )
    transfer = config.transfer
    if not is_alone and "tcp" in transfer.backends and transfer.tls is None and not transfer.trusted_network:
        raise ConfigError(
            "instances are on several machines, and KV would go between them over tcp without TLS: give transfer.tls "
            "certificates, or set transfer.trusted_network: true if nobody else is on their network"
        )
    gateway = msgspec.structs.replace(
        config.gateway,
        http=f"0.0.0.0:{HTTP_PORT}",
        control=f"tcp://0.0.0.0:{CONTROL_PORT}",
        control_keys=KEYS if has_keys(config) else None,
        api_keys=None if config.gateway.api_keys is None else API_KEYS,
    )
    return check_mesh(
        msgspec.structs.replace(
            config,
            model=settings.local_model or config.model,
            gateway=gateway,
            transfer=_transfer(transfer, is_alone=is_alone),
            instances=tuple(_instance(instance) for instance in config.instances),
        )
    )


def has_keys(config: MeshConfig) -> bool:
    """Whether connections to the control port need keys; on one machine they are made there where none are given."""
    return config.gateway.control_keys is not None or not config.gateway.insecure


def profile_files(config: MeshConfig) -> Mapping[str, str]:
    """Name in the folder of files → the file that mesh.yaml names."""
    return {_profile(instance): instance.profile for instance in config.instances if instance.profile is not None}


def tls_files(tls: TlsConfig) -> tuple[tuple[str, str], ...]:
    """(file of the machine, file in the container): keys stay where they are on each machine, and are not copied."""
    inside = _tls_inside()
    return ((tls.certificate, inside.certificate), (tls.key, inside.key), (tls.authority, inside.authority))


def _transfer(transfer: TransferConfig, *, is_alone: bool) -> TransferConfig:
    return msgspec.structs.replace(
        transfer,
        # One machine's KV goes over a network that nobody but its instances is on.
        trusted_network=transfer.trusted_network or is_alone,
        tls=None if transfer.tls is None else _tls_inside(),
        shm_folder=SOCKETS if "shm" in transfer.backends else None,
    )


def _instance(instance: InstanceConfig) -> InstanceConfig:
    """A container sees one GPU, the first."""
    kind = instance.device.partition(":")[0]
    return msgspec.structs.replace(
        instance,
        device=kind if kind == "cpu" else f"{kind}:0",
        profile=None if instance.profile is None else f"{FILES}/{_profile(instance)}",
    )


def _profile(instance: InstanceConfig) -> str:
    return f"{PROFILES}/{instance.id}.json"


def _tls_inside() -> TlsConfig:
    return TlsConfig(f"{TLS}/certificate.pem", f"{TLS}/key.pem", f"{TLS}/authority.pem")
