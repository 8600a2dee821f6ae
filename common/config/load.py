"""From a file, the environment and flags to one checked MeshConfig; later sources override earlier ones."""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from common.config.keys import KeyTree, path_text
from common.config.keys import Path as KeyPath
from common.config.rules import problems
from common.config.sources import Setting, read_environ, read_file
from common.config.types import MeshConfig
from common.errors import ConfigError


class Source(StrEnum):
    """Who decided a value."""

    DEFAULT = "default"
    FILE = "file"
    ENV = "env"
    FLAG = "flag"


class LoadedMesh(msgspec.Struct, frozen=True):
    """A configuration and, for each of its values (by path, `instances[0].role`), who decided it."""

    config: MeshConfig
    sources: dict[str, Source]

    def source(self, path: str) -> Source:
        """Who decided the value at `path`, or any value below it."""
        return max(
            (source for at, source in self.sources.items() if at == path or at.startswith((f"{path}.", f"{path}["))),
            key=list(Source).index,
            default=Source.DEFAULT,
        )


def load_mesh(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> MeshConfig:
    """See `load_mesh_with_sources`."""
    return load_mesh_with_sources(path, environ, overrides).config


def load_mesh_with_sources(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> LoadedMesh:
    """Read `path` (None: all defaults), then PDMESH_ variables of `environ`, then `overrides` by dotted key.

    Raises ConfigError with every problem found, one a line.
    """
    name = str(path) if path is not None else "the configuration"
    data = read_file(path) if path is not None else {}
    if unknown := list(KeyTree(MeshConfig).unknown(data)):
        raise ConfigError(_joined(name, unknown))
    in_file = list(_leaves(data))
    variables = list(read_environ(environ))
    flags = [Setting(tuple(key.split(".")), value, "a flag") for key, value in overrides.items()]
    for setting in (*variables, *flags):
        _put(data, setting)
    config = _convert(data, name, (*variables, *flags))
    if found := list(problems(config)):
        raise ConfigError(_joined(name, found))
    sources = _sources(config, in_file, variables, flags)
    return LoadedMesh(config=config, sources=sources)


def check_mesh(config: MeshConfig) -> MeshConfig:
    """`config` itself, if it could have been loaded; for one made or changed by code. Raises ConfigError."""
    if found := list(problems(config)):
        raise ConfigError(_joined("the configuration", found))
    return config


def _joined(name: str, found: list[str]) -> str:
    return "\n".join(f"{name}: {problem}" for problem in found)


def _put(data: dict[str, Any], setting: Setting) -> None:
    node = data
    for part in setting.path[:-1]:
        inner = node.get(part)
        node[part] = inner if isinstance(inner, dict) else {}
        node = node[part]
    node[setting.path[-1]] = deepcopy(setting.value)


def _convert(data: dict[str, Any], name: str, settings: Iterable[Setting]) -> MeshConfig:
    tree = KeyTree(MeshConfig)
    if unknown := list(tree.unknown(data)):
        raise ConfigError(_joined("a flag or variable", unknown))
    try:
        return msgspec.convert(data, MeshConfig)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        path = _parse_path(where.rstrip("`"))
        giver = next((s.giver for s in settings if path[: len(s.path)] == s.path), name)
        value = _value_at(data, path)
        raise ConfigError(
            f"{giver}: {path_text(path)} is {value!r}, which does not fit ({text}); write {tree.allowed_at(path)}"
        ) from error


def _parse_path(where: str) -> KeyPath:
    return tuple(
        int(match["index"]) if match["index"] else match["key"]
        for match in re.finditer(r"\[(?P<index>\d+)\]|\.(?P<key>[^.\[]+)", where)
    )


def _value_at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _leaves(data: Any, path: KeyPath = ()) -> Iterable[KeyPath]:
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list | tuple) else ()
    if not children and not isinstance(data, dict):
        yield path
    for key, value in children:
        yield from _leaves(value, (*path, key))


def _sources(
    config: MeshConfig, in_file: list[KeyPath], variables: list[Setting], flags: list[Setting]
) -> dict[str, Source]:
    givers: list[tuple[KeyPath, Source]] = [
        *((setting.path, Source.FLAG) for setting in flags),
        *((setting.path, Source.ENV) for setting in variables),
        *((path, Source.FILE) for path in in_file),
    ]
    return {
        path_text(leaf): next((source for path, source in givers if leaf[: len(path)] == path), Source.DEFAULT)
        for leaf in _leaves(msgspec.to_builtins(config, builtin_types=()))
    }
