"""What `pdmesh keys init` and `pdmesh keys revoke` do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from common.bus.key_files import make_keys, withdraw_key
from common.bus.keys import GATEWAY, allowed_folder
from common.config.load import load_mesh
from common.config.rules import id_problem
from common.errors import ConfigError
from common.ids import InstanceId

DEFAULT_FOLDER = Path("keys")

_WITHOUT_KEYS: Final = {"gateway.insecure": True}
"""A mesh that still lacks its keys is refused everywhere else; here it is given them."""


def init_keys(config: Path | None, out: Path | None, anew: tuple[str, ...], environ: Mapping[str, str]) -> None:
    """Make what is missing, and `anew` in any case; prints who has got a key. Raises ConfigError.

    Given `anew` alone, it is all that is made besides a gateway's key where there is none yet.
    """
    mesh = load_mesh(config, environ, _WITHOUT_KEYS)
    for name in anew:
        if name != GATEWAY and (problem := id_problem(name)) is not None:
            raise ConfigError(f"--instance is {name!r}: {problem}")
    folder = _folder(out, mesh.gateway.control_keys)
    instances = () if anew else tuple(instance.id for instance in mesh.instances)
    made = make_keys(folder, instances, anew)
    for name in made:
        print(f"{folder / name}: a new key")
    if not made:
        print(f"{folder}: the gateway and {', '.join(instances)} have keys; --instance ID makes a new one")


def revoke_key(config: Path | None, out: Path | None, name: str, environ: Mapping[str, str]) -> None:
    """Let nobody join as `name`. Raises ConfigError where nobody could."""
    mesh = load_mesh(config, environ, _WITHOUT_KEYS)
    if name == GATEWAY:
        raise ConfigError(
            "the gateway's key is not revoked: `pdmesh keys init --instance gateway` makes a new one, which every "
            "instance needs then"
        )
    folder = _folder(out, mesh.gateway.control_keys)
    if id_problem(name) is not None or not withdraw_key(folder, InstanceId(name)):
        raise ConfigError(f"nobody could join as {name!r} before: {allowed_folder(folder)} has no such key")
    print(f"{name} may not join any more; a gateway that runs drops it within a second")


def _folder(out: Path | None, configured: str | None) -> Path:
    return out or (DEFAULT_FOLDER if configured is None else Path(configured))
