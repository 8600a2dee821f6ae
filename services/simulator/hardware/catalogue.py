"""The known devices, read from the package's device files when they are asked for."""

import difflib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TypeVar

import msgspec

from common.errors import ConfigError
from services.simulator.hardware.device import DeviceSpec, check_device

_File = TypeVar("_File")


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
        raise ConfigError(f"device {name!r} is not in the catalogue; {hint}it has {', '.join(self.names())}")

    def names(self) -> tuple[str, ...]:
        """The names of all devices, in the order of the files."""
        return tuple(device.name for device in self.devices)


class _DeviceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    devices: tuple[DeviceSpec, ...]


class _SourceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: dict[str, str]


def load_catalogue(folder: Traversable | None = None) -> Catalogue:
    """The devices of the TOML files in `folder` (its sources.toml explains the sources); None: the package's own.

    Reads and checks the files at each call: call once and pass the catalogue on. Raises ConfigError.
    """
    folder = folder or resources.files("services.simulator.hardware") / "devices"
    sources = _decode(folder / "sources.toml", _SourceFile).sources
    files = sorted((file for file in folder.iterdir() if _is_device_file(file)), key=lambda file: file.name)
    devices = tuple(device for file in files for device in _decode(file, _DeviceFile).devices)
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
                    f"{field} of {device.name} has the source {figure.source!r}; sources.toml has {', '.join(sources)}"
                )
        for word in (device.name, *device.aliases):
            if _plain(word) in seen:
                raise ConfigError(f"{word!r} names both {seen[_plain(word)]} and {device.name}; rename one")
            seen[_plain(word)] = device.name


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
