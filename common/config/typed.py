"""Plain data, as YAML gives it, to any struct type; errors name the place, the value and what would do."""

import re
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from common.config.keys import KeyTree, Path, path_text
from common.errors import ConfigError

_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_STEP = re.compile(r"\[(?P<index>\d+|\.\.\.)\]|\.(?P<key>[^.\[]+)")


def typed(data: dict[str, Any], kind: type[_Struct], name: str) -> _Struct:
    """`data` as a `kind`; `name` names the file in errors. Raises ConfigError, with every unknown key, one a line."""
    tree = KeyTree(kind)
    if unknown := list(tree.unknown(data)):
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in unknown))
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `")
        path = _parse(where.rstrip("`"))
        # Of a mapping with free keys only its name is known there.
        allowed = tree.allowed_at(path).replace(inspect.DictType.__name__, "a mapping")
        value = _value_at(data, path)
        raise ConfigError(
            f"{name}: {path_text(path)} is {value!r}, which does not fit ({text}); write {allowed}"
        ) from error


def _parse(where: str) -> Path:
    """The place that msgspec names; inside a mapping with free keys it does not say which, and the path ends there."""
    path: list[str | int] = []
    for match in _STEP.finditer(where):
        if match["index"] == "...":
            break
        path.append(int(match["index"]) if match["index"] else match["key"])
    return tuple(path)


def _value_at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data
