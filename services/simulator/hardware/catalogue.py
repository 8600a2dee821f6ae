"""The known devices, read from the package's device files when they are asked for, and from a user's own."""

import difflib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

import msgspec

from common.errors import ConfigError
from services.simulator.hardware.device import DeviceSpec, check_device

_File = TypeVar("_File")

HOW_TO_ADD = (
    "to add one, describe it in a TOML file (docs/devices.md shows one) and name the file under the key `devices`"
)


class Catalogue(msgspec.Struct, frozen=True):
    """Devices, and the meaning of the keys that their figures name as sources."""

    devices: tuple[DeviceSpec, ...]
    sources: dict[str, str]

    def device(self, name: str) -> DeviceSpec:
        """The device of that name or alias; case, spaces and punctuation do not matter. Raises ConfigError."""
        wanted = _plain(name)
        by_name = {_plain(word): device for device in self.devices for word in (device.name, *device.aliases)}
        if wanted in by_name:
            return by_name[wanted]
        near = difflib.get_close_matches(wanted, by_name, n=1)
        hint = f"did you mean {by_name[near[0]].name!r}? " if near else ""
        has = f"it has {', '.join(self.names())}"
        raise ConfigError(f"device {name!r} is not in the catalogue; {hint}{has}; {HOW_TO_ADD}")

    def names(self) -> tuple[str, ...]:
        """The names of all devices, in the order of the files."""
        return tuple(device.name for device in self.devices)


class _DeviceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    devices: tuple[DeviceSpec, ...]


class _OwnFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    devices: tuple[DeviceSpec, ...]
    sources: dict[str, str] = {}


class _SourceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: dict[str, str]


def load_catalogue(folder: Traversable | None = None, own: Path | None = None) -> Catalogue:
    """The devices of the TOML files in `folder` (its sources.toml explains the sources); None: the package's own.

    `own`: see with_own.  Reads and checks the files at each call: call once and pass the catalogue on.  Raises
    ConfigError.
    """
    folder = folder or resources.files("services.simulator.hardware") / "devices"
    sources = _decode(folder / "sources.toml", _SourceFile).sources
    files = sorted((file for file in folder.iterdir() if _is_device_file(file)), key=lambda file: file.name)
    devices = tuple(device for file in files for device in _decode(file, _DeviceFile).devices)
    _check(devices, sources)
    catalogue = Catalogue(devices, sources)
    return catalogue if own is None else with_own(catalogue, own)


def with_own(catalogue: Catalogue, path: Path) -> Catalogue:
    """`catalogue` and the devices of the TOML file `path`, or of all in that folder; a name known already is replaced.

    Such a file has `[[devices]]` as the package's have, and may have `[sources]` of its own.  Raises ConfigError.
    """
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"the folder {str(path)!r} has no *.toml with devices; {HOW_TO_ADD}")
    read = [_decode(file, _OwnFile) for file in files]
    own = tuple(device for file in read for device in file.devices)
    sources = catalogue.sources | {key: meaning for file in read for key, meaning in file.sources.items()}
    names = {_plain(device.name) for device in own}
    devices = tuple(device for device in catalogue.devices if _plain(device.name) not in names) + own
    _check(devices, sources)
    return Catalogue(devices, sources)


def _is_device_file(file: Traversable) -> bool:
    return file.name.endswith(".toml") and file.name != "sources.toml"


def _decode(file: Traversable, kind: type[_File]) -> _File:
    try:
        return msgspec.toml.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"device file {file.name!r} cannot be used: {error}") from error


def _check(devices: tuple[DeviceSpec, ...], sources: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for device in devices:
        check_device(device)
        for field, figure in device.figures():
            if figure.source not in sources:
                raise ConfigError(
                    f"{field} of {device.name} has the source {figure.source!r}; known are {', '.join(sources)}: "
                    "use one of these, or explain yours under [sources]"
                )
        for word in (device.name, *device.aliases):
            if _plain(word) in seen:
                raise ConfigError(f"{word!r} names both {seen[_plain(word)]} and {device.name}; rename one")
            seen[_plain(word)] = device.name


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
