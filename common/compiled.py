"""From C++ source to a loaded library: compiled once for each machine, kept in the user's cache."""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import ModelError
from common.model_store import cache_root

_log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
"""Any of them will do; the first that is found is taken."""

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
"""Nothing here lets a compiler change a result: no -ffast-math. Without the two -fno- it would not use vectors."""

_COMPILE_TIMEOUT_S = 120.0


class _CompileError(Exception):
    """Why there is no library."""


def user_cache() -> Path | None:
    """Where this user's compiled code is kept, beside the models; None, after one log line, where there is no place."""
    try:
        return cache_root(os.environ)  # noqa: TID251 - where compiled code is kept is no part of a configuration
    except ModelError as error:
        _log.warning("no place for compiled kernels, a slower way is taken: %s", error)
        return None


def load_library(
    source: Path, includes: Sequence[Path], folder: Path, compilers: Sequence[str] = COMPILERS
) -> ctypes.CDLL | None:
    """The library that `source` (which includes `includes`, from its own folder) compiles to; calls release the GIL.

    It is compiled into `folder` when it is not there yet; that takes a second or two.  Any number of processes may do
    so at once: each renames a whole file into place.  None, after one log line that says why, if it cannot be had.
    """
    try:
        compiler = _find(compilers)
        path = folder / f"{source.stem}-{_fingerprint(compiler, (source, *includes))}.so"
        return _load(path) or _load(_compile(compiler, source, path), must=True)
    except (_CompileError, OSError, subprocess.SubprocessError) as error:
        _log.warning("%s cannot be compiled and loaded here, a slower way is taken: %s", source.name, error)
        return None


def _find(compilers: Sequence[str]) -> str:
    for name in compilers:
        if found := shutil.which(name):
            return found
    raise _CompileError(f"no C++ compiler; install one of {', '.join(compilers)}")


def _fingerprint(compiler: str, files: Sequence[Path]) -> str:
    """Names the inputs: files, compiler, flags, and the CPU that -march=native means (a home may be shared)."""
    digest = hashlib.sha256()
    for part in (*(file.read_bytes() for file in files), _version(compiler), " ".join(_FLAGS).encode(), _cpu()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _version(compiler: str) -> bytes:
    return subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=10.0).stdout


def _cpu() -> bytes:
    """What tells CPUs apart that need different code; on Linux the model and the flags."""
    wanted = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features", "isa")
    about = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        first_core = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        about += [line for line in first_core.splitlines() if line.partition(":")[0].strip() in wanted]
    return "\n".join(about).encode()


def _load(path: Path, *, must: bool = False) -> ctypes.CDLL | None:
    """None (or OSError, if it must be there) for a file that is missing or damaged."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        if must:
            raise
        return None


def _compile(compiler: str, source: Path, path: Path) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        command = [compiler, *_FLAGS, "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
        if done.returncode != 0:
            raise _CompileError(f"{compiler} failed: {' | '.join(done.stderr.strip().splitlines()[:3])}")
        os.replace(made, path)
    return path
