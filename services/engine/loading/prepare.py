"""Make a model ready to load: fetch, check and convert what `resolve` says is missing."""

import shutil
from pathlib import Path
from typing import assert_never

import msgspec
from safetensors import SafetensorError

from common.errors import ModelError
from common.model_store import (
    GgufSource,
    HubSource,
    ModelLocation,
    ModelSource,
    NeedsPreparation,
    WheelSource,
    resolve,
)
from services.engine.loading.hub import Snapshot, hub_snapshot, link_snapshot
from services.engine.loading.progress import PreparationProgress
from services.engine.loading.staging import Workspace, publish
from services.engine.loading.wheel import Download, gguf_from_wheel, pip_download


class Fetchers(msgspec.Struct, frozen=True):
    """How bytes come from outside; tests and air-gapped sites give their own."""

    download: Download = pip_download
    snapshot: Snapshot = hub_snapshot


def prepare(name: str, cache: Path, progress: PreparationProgress, fetchers: Fetchers | None = None) -> ModelLocation:
    """The folder of model `name`, made first where needed (the default model: about a minute, half a gigabyte).

    Safe to call from several processes at once: one works, the others wait for it.  Raises ModelError with what to
    do; whatever ends it, a kill included, nothing half-made is ever found by `resolve`.
    """
    match resolve(name, cache):
        case ModelLocation() as location:
            return location
        case NeedsPreparation() as needed:
            _make(needed, progress, fetchers or Fetchers())
            return ModelLocation(name, needed.folder)
        case never:
            assert_never(never)


def _make(needed: NeedsPreparation, progress: PreparationProgress, fetchers: Fetchers) -> None:
    def write(workspace: Workspace) -> None:
        _write(needed.source, workspace, progress, fetchers)

    try:
        publish(needed.folder, _words(needed.source), write, progress)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"model {needed.name!r} could not be written to {str(needed.folder.parent)!r}: {error} "
            f"({_free(needed.folder)}); make room or set PDMESH_CACHE to another folder, then run again"
        ) from error


def _write(source: ModelSource, workspace: Workspace, progress: PreparationProgress, fetchers: Fetchers) -> None:
    match source:
        case WheelSource():
            gguf = gguf_from_wheel(source, workspace.scratch, progress, fetchers.download)
            _convert(gguf, workspace.model, progress)
        case GgufSource():
            _convert(source.path, workspace.model, progress)
        case HubSource():
            link_snapshot(source.repo, workspace.model, progress, fetchers.snapshot)
        case _:
            assert_never(source)


def _convert(gguf: Path, into: Path, progress: PreparationProgress) -> None:
    progress.stage("importing torch and transformers")
    # Imported here, because it takes seconds, and most calls find the model prepared.
    from services.engine.loading.convert import convert_gguf

    convert_gguf(gguf, into, progress)


def _words(source: ModelSource) -> str:
    match source:
        case WheelSource():
            return f"{source.member} of {source.requirement}, sha256 {source.gguf_sha256}"
        case GgufSource():
            return f"{source.path}, sha256 {source.gguf_sha256}"
        case HubSource():
            return f"{source.repo} of the Hugging Face hub"
        case _:
            assert_never(source)


def _free(folder: Path) -> str:
    existing = next(path for path in folder.parents if path.exists())
    return f"{shutil.disk_usage(existing).free / 1e9:.1f} GB free there"
