"""Makes the files that `common.bus.keys` reads. A reader sees a file as it was or as it is now, never half of it."""

import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from common.bus.keys import (
    GATEWAY,
    GATEWAY_FILE,
    PRIVATE_FILE,
    PUBLIC_SUFFIX,
    KeyPair,
    PublicKey,
    allowed_files,
    allowed_folder,
    new_pair,
    read_gateway,
)
from common.errors import ConfigError
from common.ids import InstanceId

_PRIVATE_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
_FOLDER_MODE: Final = 0o700


def make_keys(folder: Path, instances: Sequence[InstanceId], anew: Collection[str] = ()) -> tuple[str, ...]:
    """A key for the gateway and each of `instances` that has none, and a new one for each of `anew`.

    Returns for whom it made one.  A new key takes the place of the old one, which is good for nothing from then on.
    Raises ConfigError.
    """
    made = []
    try:
        if GATEWAY in anew or not (folder / GATEWAY / PRIVATE_FILE).exists():
            _refuse_half_a_folder(folder, anew)
            _make_gateway(folder)
            made.append(GATEWAY)
        gateway = read_gateway(folder).public
        for instance in dict.fromkeys((*instances, *(InstanceId(name) for name in anew if name != GATEWAY))):
            if instance in anew or not _has_key(folder, instance):
                _make_instance(folder, instance, gateway)
                made.append(instance)
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename!r}: {error.strerror}; give another folder with --out"
        ) from error
    return tuple(made)


def withdraw_key(folder: Path, instance: InstanceId) -> bool:
    """Let nobody join as `instance`, and end its membership if it is one; whether anybody could. Raises ConfigError."""
    path = _allowed(folder, instance)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"cannot remove {str(path)!r}: {error.strerror}") from error
    return True


def _refuse_half_a_folder(folder: Path, anew: Collection[str]) -> None:
    if GATEWAY not in anew and next(folder.glob(f"*/{GATEWAY_FILE}"), None) is not None:
        raise ConfigError(
            f"{folder} holds instances' keys, but not the gateway's, which they know: run this where they were made, "
            f"or make a new one for all with --instance {GATEWAY}"
        )


def _make_gateway(folder: Path) -> None:
    """Instances whose folders are here learn of it; to the others their folders must be brought."""
    pair = new_pair()
    _write_private(folder / GATEWAY, pair)
    _make_folder(allowed_folder(folder))
    for private in folder.glob(f"*/{PRIVATE_FILE}"):
        if private.parent.name != GATEWAY:
            _write(private.parent / GATEWAY_FILE, pair.public, _PUBLIC_MODE)


def _make_instance(folder: Path, instance: InstanceId, gateway: PublicKey) -> None:
    pair = new_pair()
    _write_private(folder / instance, pair)
    _write(folder / instance / GATEWAY_FILE, gateway, _PUBLIC_MODE)
    # Last: the gateway ends the old key's session, and the instance then finds its new one.
    _make_folder(allowed_folder(folder))
    _write(_allowed(folder, instance), pair.public, _PUBLIC_MODE)


def _has_key(folder: Path, instance: InstanceId) -> bool:
    """Its folder may have been moved to another machine, or its key withdrawn."""
    return (folder / instance / PRIVATE_FILE).exists() or _allowed(folder, instance) in allowed_files(folder)


def _allowed(folder: Path, instance: InstanceId) -> Path:
    return allowed_folder(folder) / f"{instance}{PUBLIC_SUFFIX}"


def _write_private(folder: Path, pair: KeyPair) -> None:
    _make_folder(folder)
    _write(folder / PRIVATE_FILE, pair.secret.reveal(), _PRIVATE_MODE)


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)


def _write(path: Path, key: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)  # of mode 600 from the start
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key + b"\n")
            os.fchmod(descriptor, mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
