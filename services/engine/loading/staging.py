"""One writer, all or nothing: a folder of the cache appears by a rename, when it is whole and on disk."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from common.model_store import FORMAT, MARKER, Prepared, is_complete
from services.engine.loading.progress import PreparationProgress


class Workspace(msgspec.Struct, frozen=True):
    """Two folders of one attempt, in the cache's file system; both exist and are empty at the start."""

    model: Path
    """Becomes the prepared folder."""
    scratch: Path
    """Downloads and the like; removed at the end."""


def publish(folder: Path, source: str, write: Callable[[Workspace], None], progress: PreparationProgress) -> None:
    """Make `folder` whole by `write`, unless it is: safe against other processes, interruption and power loss.

    `source` goes into the marker.  What a killed attempt left is removed first; an attempt that fails or is
    interrupted removes its own files and lets the exception through, with `folder` as it was before.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _sole_writer(folder, progress):
        if is_complete(folder):
            return
        attempt = folder.with_name(f".preparing-{folder.name}")
        _remove(attempt)
        try:
            _make(attempt, folder, source, write)
        finally:
            _remove(attempt)


def _make(attempt: Path, folder: Path, source: str, write: Callable[[Workspace], None]) -> None:
    workspace = Workspace(model=attempt / "model", scratch=attempt / "scratch")
    workspace.model.mkdir(parents=True)
    workspace.scratch.mkdir()
    write(workspace)
    marker = Prepared(format=FORMAT, source=source)
    (workspace.model / MARKER).write_bytes(msgspec.json.encode(marker))
    for path in (*workspace.model.iterdir(), workspace.model):
        _sync(path)
    if folder.exists():  # of an older format, or with links that lead nowhere
        folder.rename(attempt / "replaced")
    workspace.model.rename(folder)
    _sync(folder.parent)


@contextmanager
def _sole_writer(folder: Path, progress: PreparationProgress) -> Iterator[None]:
    """Hold the folder's lock. The system drops it with the process, so that a killed writer blocks nobody."""
    with folder.with_name(f".lock-{folder.name}").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.stage(f"waiting for another process that prepares {folder.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
