"""`pdmesh model list`: the models that need no download, and those that could be prepared by name."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.model_store import BUILT_IN, MARKER, Prepared, cache_root, is_complete, resolve


class ListedModel(msgspec.Struct, frozen=True):
    """One model of this machine."""

    name: str
    """As the key `model` takes it; for a folder of the cache the folder's own name."""
    is_ready: bool
    """Prepared: it can be started without a download."""
    folder: str
    source: str
    size_bytes: int


def list_models(environ: Mapping[str, str], *, as_json: bool, console: Console) -> None:
    """Print them. Raises ModelError where there is no place for a cache."""
    models = models_of(cache_root(environ))
    if as_json:
        console.print_json(msgspec.json.encode(models).decode())
        return
    table = Table("model", "ready", "MiB", "from", "folder")
    for model in models:
        size = f"{model.size_bytes / (1 << 20):.0f}" if model.is_ready else "–"
        table.add_row(Text(model.name), "yes" if model.is_ready else "no", size, Text(model.source), Text(model.folder))
    console.print(table)
    console.print("`pdmesh model fetch NAME` prepares one: a built-in name, a .gguf file, or a hub repository's id.")


def models_of(cache: Path) -> list[ListedModel]:
    """The built-in models, and all else in `cache` that is whole."""
    listed = {resolve(name, cache).folder: name for name in BUILT_IN}
    folders = [*listed, *(folder for folder in _prepared(cache) if folder not in listed)]
    return [_listed(folder, listed.get(folder, folder.name)) for folder in folders]


def _prepared(cache: Path) -> list[Path]:
    root = cache / "models"
    return sorted(folder for folder in root.iterdir() if is_complete(folder)) if root.is_dir() else []


def _listed(folder: Path, name: str) -> ListedModel:
    if not is_complete(folder):
        return ListedModel(name, False, str(folder), BUILT_IN[name].requirement, 0)
    source = msgspec.json.decode((folder / MARKER).read_bytes(), type=Prepared).source
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return ListedModel(name, True, str(folder), source, size)
