"""Models of the Hugging Face hub: kept in the hub's own cache, which resumes downloads and is shared with others."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub

from common.errors import ModelError
from services.engine.loading.progress import PreparationProgress

Snapshot = Callable[[str], Path]
"""Fetches a repository's files and returns their folder; may raise anything."""

_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def hub_snapshot(repo: str) -> Path:
    """Fetch what serving needs, weights as safetensors only; shows its own progress on stderr."""
    return Path(huggingface_hub.snapshot_download(repo, allow_patterns=_WANTED))


def link_snapshot(repo: str, into: Path, progress: PreparationProgress, snapshot: Snapshot) -> None:
    """Fill `into` with links to the files of the hub's cache. Raises ModelError that says what to do instead."""
    progress.stage(f"fetching {repo} from the Hugging Face hub", foreign=True)
    try:
        files = list(snapshot(repo).iterdir())
    except Exception as error:  # the hub's client raises errors of its own, of its HTTP library and of the system
        raise ModelError(
            f"there is no folder {repo!r} here, and the hub did not give that model "
            f"({type(error).__name__}: {_first_line(error)}); check the name, the network and, for a gated model, "
            "HF_TOKEN, or copy the model to a folder and give that"
        ) from error
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"the hub's {repo!r} holds no safetensors; convert it and give the folder")
    for file in files:
        (into / file.name).symlink_to(file.resolve())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
