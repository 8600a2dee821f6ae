"""`pdmesh config check`: what of a mesh.yaml cannot work here, without starting anything."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from common.config.load import load_mesh
from common.config.types import MeshConfig
from common.errors import ConfigError, ModelError
from common.model_store import ModelLocation, NeedsPreparation, cache_root, resolve


def check_config(config: Path | None, environ: Mapping[str, str], console: Console) -> None:
    """Show what was read, and what is still to come. Raises ConfigError for what cannot work on any machine: keys,
    values, and a model that is none.
    """
    mesh = load_mesh(config, environ, {})
    model = _resolved(mesh.model, environ)
    instances = ", ".join(f"{instance.id} ({instance.role})" for instance in mesh.instances)
    _say(console, f"ok: model {mesh.model}, dtype {mesh.dtype}, split {mesh.split}, instances {instances}")
    if isinstance(model, NeedsPreparation):
        told = f"the first start does it, or `pdmesh model fetch {model.name}`"
        _say(console, f"the model is not prepared here yet: {told}")
    for key, path in files_of(mesh):
        if not Path(path).exists():
            _say(console, f"not on this machine: {path} ({key})")


def _resolved(name: str, environ: Mapping[str, str]) -> ModelLocation | NeedsPreparation:
    try:
        return resolve(name, cache_root(environ))
    except ModelError as error:
        raise ConfigError(str(error)) from error


def files_of(mesh: MeshConfig) -> Iterator[tuple[str, str]]:
    """Key and path of each file and folder that the mesh names; not every machine needs every one."""
    named = [("gateway.control_keys", mesh.gateway.control_keys), ("gateway.api_keys", mesh.gateway.api_keys)]
    if (tls := mesh.transfer.tls) is not None:
        named += [("transfer.tls.certificate", tls.certificate), ("transfer.tls.key", tls.key)]
        named += [("transfer.tls.authority", tls.authority)]
    named += [(f"profile of {instance.id}", instance.profile) for instance in mesh.instances]
    return ((key, path) for key, path in named if path is not None)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
