"""Where configuration comes from: a YAML file, PDMESH_ variables, flags. Each becomes a tree of plain values."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import inspect

from common.config.keys import KeyTree, nearest
from common.config.types import MeshConfig
from common.errors import ConfigError

PREFIX = "PDMESH_"
RESERVED = frozenset({"PDMESH_API_KEY", "PDMESH_CACHE", "PDMESH_DATA", "PDMESH_TORCH", "PDMESH_URL"})
"""Variables that are not configuration of a mesh."""

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What the parser raises: ValueError for dates that do not exist and integers of thousands of digits."""


class Setting(msgspec.Struct, frozen=True):
    """One value given from outside the file, and how its giver calls it."""

    path: tuple[str, ...]
    value: Any
    giver: str


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset, in which a key given twice is an error instead of silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # An anchor may stand within itself, a tree without end; and no key needs one.
            alias = self.get_event()  # type: ignore[no-untyped-call]  # the stubs leave it out
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", alias.start_mark)
        return super().compose_node(parent, index)


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration {str(path)!r}: {error}; give another with --config"
        ) from error
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except _NOT_YAML as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping of keys such as 'model: smollm2'")
    return data


def read_environ(environ: Mapping[str, str]) -> Iterator[Setting]:
    """The settings in PDMESH_ variables: PDMESH_GATEWAY__HTTP is gateway.http; an empty one counts as unset.

    Values are YAML, so that lists and null can be given; where the key wants text they are taken as they stand.
    Raises ConfigError for a variable that is no key.
    """
    tree = KeyTree(MeshConfig)
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in RESERVED or not text:
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        node = tree.type_at(path)
        if node is None:
            hint = nearest(name, sorted(RESERVED | set(variables())))
            raise ConfigError(f"unknown variable {name!r}; {hint} (KEY or SECTION__KEY of mesh.yaml, in capitals)")
        yield Setting(path, text if isinstance(node, inspect.StrType) else _parse(name, text), name)


def variables() -> Iterator[str]:
    """Every PDMESH_ variable that sets a key."""
    for field in msgspec.structs.fields(MeshConfig):
        yield PREFIX + field.encode_name.upper()
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            for inner in msgspec.structs.fields(field.type):
                yield f"{PREFIX}{field.encode_name}__{inner.encode_name}".upper()


def _parse(name: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except _NOT_YAML as error:
        raise ConfigError(f"{name} is {text!r}, which is not YAML: {' '.join(str(error).split())}") from error
