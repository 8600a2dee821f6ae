"""What a compose file is written with besides the mesh, and what comes of it."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from common.config.types import MeshConfig

Vendor = Literal["cpu", "cuda", "rocm"]


class Images(msgspec.Struct, frozen=True):
    """The image for each kind of device; the gateway and the preparation of the model take that for CPUs."""

    cpu: str = "pdmesh:cpu"
    cuda: str = "pdmesh:cuda"
    rocm: str = "pdmesh:rocm"

    def of(self, device: str) -> str:
        """The image for `device` as it stands in mesh.yaml."""
        images: dict[str, str] = {"cpu": self.cpu, "cuda": self.cuda, "rocm": self.rocm}
        return images[device.partition(":")[0]]


class ComposeSettings(msgspec.Struct, frozen=True):
    """Paths are the host's: absolute, or beginning with "./" and then beside the compose file."""

    images: Images = Images()
    files: str = "./compose.mesh"
    """The folder of mesh.yaml and the profiles."""
    cache: str | None = None
    """A folder of prepared models; None: a volume."""
    local_model: str | None = None
    """The model's folder or .gguf file, where mesh.yaml names one."""
    gateway_host: str | None = None
    """By which name the other machines reach the gateway's; None: see `plan_hosts`."""


class ComposeFile(msgspec.Struct, frozen=True):
    """What one machine runs."""

    host: str | None
    """None: the only machine has no name."""
    document: dict[str, Any]
    notes: tuple[str, ...]
    """Lines for the person who starts it."""


class ComposeStack(msgspec.Struct, frozen=True):
    """Everything that `pdmesh compose` writes."""

    mesh: MeshConfig
    """What the containers read, on all machines."""
    profiles: Mapping[str, str]
    """Name in the folder of files → the file that it is a copy of."""
    files: tuple[ComposeFile, ...]
    """The gateway's machine first."""
