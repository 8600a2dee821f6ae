"""The services of a compose file: the preparation of the model, the gateway, the instances."""

import re
from collections.abc import Mapping
from typing import Any

from common.config.types import InstanceConfig, MeshConfig
from common.messages.control import Role
from services.launch.commands import GATEWAY, child_environ
from services.launch.compose_hosts import (
    CONTROL_PORT,
    HTTP_PORT,
    HostPlan,
    control_address,
    published_control,
    published_http,
)
from services.launch.compose_mesh import API_KEYS, FILES, KEYS, MESH_FILE, SOCKETS, has_keys, tls_files
from services.launch.compose_settings import ComposeSettings

MODEL = "model"
"""The service that prepares the model and ends."""
KEYS_SERVICE = "keys"
"""The service that makes keys for the control port and ends."""
FRONT, CONTROL, DATA = "front", "control", "data"
"""Networks of one machine: to the outside, where instances join, where KV moves. The last two lead nowhere else."""
MODELS_VOLUME, SOCKETS_VOLUME, KEYS_VOLUME = "models", "sockets", "keys"

_CACHE = "/var/cache/pdmesh"
_USER = "10001:10001"
"""As the Dockerfile makes it; one user everywhere, since the shm backend meets its own user alone."""
_GRACE = "30s"
"""More than a process takes to finish its requests (20 s)."""
_FETCHING = ("HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
"""What the preparation takes over from the environment of whoever starts it."""
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
_ASK_READY = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{HTTP_PORT}/ready', timeout=5)"

Service = dict[str, Any]
Mount = dict[str, str | bool]


class Composer:
    """Writes the services of one machine. `mesh` is the user's, in which devices and hosts are the machine's."""

    def __init__(self, mesh: MeshConfig, settings: ComposeSettings, host: HostPlan, gateway_host: str | None) -> None:
        """`gateway_host`: None where the whole mesh is on this machine."""
        self._mesh = mesh
        self._settings = settings
        self._host = host
        self._gateway_host = gateway_host

    @property
    def is_alone(self) -> bool:
        """Whether the whole mesh is on this machine."""
        return self._gateway_host is None

    @property
    def prepares(self) -> bool:
        """Whether there is a model to prepare: a folder of the user's is served as it is."""
        local = self._settings.local_model
        return local is None or local.endswith(".gguf")

    @property
    def makes_keys(self) -> bool:
        """Whether there are keys to make: a folder of the user's is taken as it is."""
        return has_keys(self._mesh) and self._mesh.gateway.control_keys is None

    def services(self) -> dict[str, Service]:
        """By name, in the order in which they start."""
        services: dict[str, Service] = {}
        if self.makes_keys:
            services[KEYS_SERVICE] = self._keys()
        if self.prepares:
            services[MODEL] = self._model()
        if self._host.has_gateway:
            services[GATEWAY] = self._gateway()
        return services | {instance.id: self._instance(instance) for instance in self._host.instances}

    def volumes(self) -> tuple[str, ...]:
        """Those that the services name."""
        models = () if self._settings.cache is not None else (MODELS_VOLUME,)
        sockets = (SOCKETS_VOLUME,) if self._shares_memory else ()
        return (*models, *sockets, *((KEYS_VOLUME,) if self.makes_keys else ()))

    def networks(self) -> dict[str, dict[str, bool]]:
        """Those that the services name; instances on several machines are on their machine's own network."""
        outward: tuple[str, ...] = (FRONT,) if self.prepares or self._host.has_gateway else ()
        inward: tuple[str, ...] = (CONTROL, DATA) if self.is_alone else ()
        return {name: {} for name in outward} | {name: {"internal": True} for name in inward}

    @property
    def _shares_memory(self) -> bool:
        return "shm" in self._mesh.transfer.backends and bool(self._host.instances)

    def _keys(self) -> Service:
        return {
            **self._base("cpu"),
            "command": ["keys", "init", "--config", f"{FILES}/{MESH_FILE}"],
            # For a person's `compose run --rm keys keys revoke ID`, too.
            "environment": {"PDMESH_GATEWAY__CONTROL_KEYS": KEYS},
            "volumes": [_file(self._settings.files, FILES), _volume(KEYS_VOLUME, KEYS)],
            "network_mode": "none",
            "restart": "no",
        }

    def _model(self) -> Service:
        return {
            **self._base("cpu"),
            "command": ["model", "fetch", "--config", f"{FILES}/{MESH_FILE}"],
            "environment": dict.fromkeys(_FETCHING),
            "volumes": self._mounts(),
            "networks": [FRONT],
            "restart": "no",
        }

    def _gateway(self) -> Service:
        ports = [published_http(self._mesh)]
        return {
            **self._base("cpu"),
            **self._runs(("gateway",), {}, 1),
            "volumes": [*self._mounts(), *self._key_mounts(GATEWAY), *self._api_key_mounts()],
            "ports": ports if self.is_alone else [*ports, published_control(self._mesh)],
            "networks": [FRONT, CONTROL] if self.is_alone else [FRONT],
            "healthcheck": {
                "test": ["CMD", "python", "-c", _ASK_READY],
                "interval": "5s",
                "timeout": "10s",
                "retries": 3,
                # The instances load the model meanwhile.
                "start_period": "10m",
            },
        }

    def _instance(self, instance: InstanceConfig) -> Service:
        service = {
            **self._base(instance.device),
            **self._runs(
                (instance.role.value, "--instance", instance.id), self._addresses(instance), _threads(instance)
            ),
            "volumes": [*self._mounts(), *self._key_mounts(instance.id), *self._transfer_mounts()],
            **self._place(instance),
            **_cores(instance),
        }
        _add_device(service, instance.device)
        return service

    def _base(self, device: str) -> Service:
        return {
            "image": self._settings.images.of(device),
            "user": _USER,
            "read_only": True,
            "tmpfs": ["/tmp"],
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
        }

    def _runs(self, command: tuple[str, ...], environ: Mapping[str, str], threads: int | None) -> Service:
        """What the services that stay have in common."""
        role, *flags = command
        service: Service = {
            "command": [role, "--config", f"{FILES}/{MESH_FILE}", *flags],
            "environment": {**({} if threads is None else child_environ({}, threads)), **environ},
            "restart": "unless-stopped",
            "stop_grace_period": _GRACE,
        }
        if self._first():
            service["depends_on"] = {name: {"condition": "service_completed_successfully"} for name in self._first()}
        return service

    def _first(self) -> tuple[str, ...]:
        """The services that must have ended before those that stay begin."""
        return (*((KEYS_SERVICE,) if self.makes_keys else ()), *((MODEL,) if self.prepares else ()))

    def _addresses(self, instance: InstanceConfig) -> dict[str, str]:
        control = (
            f"tcp://{GATEWAY}:{CONTROL_PORT}"
            if self._gateway_host is None
            else control_address(self._mesh, self._gateway_host)
        )
        found = {"PDMESH_GATEWAY__CONTROL": control}
        if instance.role is Role.PREFILL:
            found["PDMESH_TRANSFER__HOST"] = self._data_name(instance) if self.is_alone else str(self._host.name)
        return found

    def _place(self, instance: InstanceConfig) -> Service:
        if not self.is_alone:
            # KV is served at ports that the system chooses, which cannot be published one by one.
            return {"network_mode": "host"}
        return {"networks": {CONTROL: {}, DATA: {"aliases": [self._data_name(instance)]}}}

    def _data_name(self, instance: InstanceConfig) -> str:
        """A name that leads to it on the data network and nowhere else: its own name leads to both networks."""
        index = self._host.instances.index(instance)
        return f"{instance.id if _DNS_LABEL.fullmatch(instance.id) else f'instance-{index}'}.{DATA}"

    def _mounts(self) -> list[Mount]:
        settings = self._settings
        cache = _volume(MODELS_VOLUME, _CACHE) if settings.cache is None else _folder(settings.cache, _CACHE)
        mounts = [_file(settings.files, FILES), cache]
        return mounts if settings.local_model is None else [*mounts, _file(settings.local_model, settings.local_model)]

    def _key_mounts(self, process: str) -> list[Mount]:
        """A folder and not its files: a file that is replaced would stay the old one in a running container."""
        if self.makes_keys:
            return [{**_volume(KEYS_VOLUME, KEYS), "read_only": True}]
        folder = self._mesh.gateway.control_keys
        return [] if folder is None else [_file(f"{folder}/{process}", f"{KEYS}/{process}")]

    def _api_key_mounts(self) -> list[Mount]:
        # `pdmesh keys api` writes into the file that is there, so that a running container sees what it writes.
        file = self._mesh.gateway.api_keys
        return [] if file is None else [_file(file, API_KEYS)]

    def _transfer_mounts(self) -> list[Mount]:
        tls = self._mesh.transfer.tls
        sockets = [_volume(SOCKETS_VOLUME, SOCKETS)] if self._shares_memory else []
        return [*sockets, *([] if tls is None else [_file(*pair) for pair in tls_files(tls)])]


def _volume(name: str, target: str) -> Mount:
    return {"type": "volume", "source": name, "target": target}


def _folder(source: str, target: str) -> Mount:
    # A dollar begins a variable in a compose file.
    return {"type": "bind", "source": source.replace("$", "$$"), "target": target.replace("$", "$$")}


def _file(source: str, target: str) -> Mount:
    return {**_folder(source, target), "read_only": True}


def _threads(instance: InstanceConfig) -> int | None:
    """None: by how many cores the container finds."""
    return instance.threads if instance.cpu_affinity is None else instance.threads or len(instance.cpu_affinity)


def _cores(instance: InstanceConfig) -> Service:
    if instance.cpu_affinity is not None:
        return {"cpuset": ",".join(str(core) for core in instance.cpu_affinity)}
    return {} if instance.threads is None else {"cpus": float(instance.threads)}


def _add_device(service: Service, device: str) -> None:
    """The container sees that one GPU as its first."""
    kind, _, index = device.partition(":")
    match kind:
        case "cuda":
            wanted = {"driver": "nvidia", "device_ids": [index or "0"], "capabilities": ["gpu"]}
            service["deploy"] = {"resources": {"reservations": {"devices": [wanted]}}}
        case "rocm":
            service["devices"] = ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]
            # By number where the host's groups are not the image's.
            service["group_add"] = ["${VIDEO_GROUP:-video}", "${RENDER_GROUP:-render}"]
            service["security_opt"].append("seccomp=unconfined")
            service["environment"]["ROCR_VISIBLE_DEVICES"] = index or "0"
