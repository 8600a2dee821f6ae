"""The model that a cluster file names."""

import json
from pathlib import Path

import msgspec

from common.config.types import DType
from common.errors import ConfigError, ModelError
from common.model_store import fingerprint
from services.scheduling.profiles.profile import Origin, Profile, ProfileError, Subject
from services.simulator.cluster.keys import ClusterKeys
from services.simulator.hardware.models import ModelSpec, find_model, from_hf_config


class ServedModel(msgspec.Struct, frozen=True):
    """The architecture, what it computes in, and what measured profiles call the model."""

    spec: ModelSpec
    dtype: DType
    fingerprint: str | None = None
    """None: not known."""

    @property
    def token_bytes(self) -> int:
        """Bytes of KV of one token."""
        return self.spec.kv_bytes_per_token(self.dtype)

    def require(self, profile: Profile) -> None:
        """Raise ProfileError where `profile` is of another model or dtype.

        One from a specification names the architecture, a measured one the fingerprint of config and weights.
        """
        name = self.spec.name if profile.origin is Origin.SPEC else self.fingerprint
        if name is None:
            raise ProfileError(
                f"the profile was measured with the model {profile.subject.model!r}, and nothing says that it is "
                f"{self.spec.name}; if it is, write `fingerprint: {profile.subject.model}` beside `model`"
            )
        # Into how many ranks the measured instance was divided is part of what was measured.
        profile.require(Subject(name, self.dtype, profile.subject.tp, profile.subject.pp))


def served_model(keys: ClusterKeys, file: Path) -> ServedModel:
    """The model of the cluster file `file`: by name, or from a config.json. Raises ConfigError."""
    if not _is_path(keys.model, file.parent):
        try:
            return ServedModel(find_model(keys.model), keys.dtype, keys.fingerprint)
        except ConfigError as error:
            raise ConfigError(f"{file}: model: {error}") from error
    path = file.parent / keys.model
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ModelError(f"{str(path)!r} holds no configuration but {type(config).__name__}")
        spec = from_hf_config(config, path.absolute().parent.name if path.name == "config.json" else path.stem)
        return ServedModel(spec, keys.dtype, keys.fingerprint or _own_fingerprint(path.parent))
    except (OSError, ValueError, ModelError) as error:
        raise ConfigError(
            f"{file}: model is {keys.model!r}, which cannot be used: {error}; "
            "give a name of the catalogue, or the path of a Hugging Face config.json"
        ) from error


def _is_path(model: str, folder: Path) -> bool:
    return "/" in model or model.endswith(".json") or (folder / model / "config.json").is_file()


def _own_fingerprint(folder: Path) -> str | None:
    return fingerprint(folder) if any(folder.glob("*.safetensors")) else None
