"""The tree of keys that mesh.yaml may have, read from the config types, so that nothing is listed twice."""

import difflib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import msgspec
from msgspec import inspect

Path = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top."""


def path_text(path: Path) -> str:
    """As people write it: `instances[0].block_size`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"


class KeyTree:
    """The keys below one struct type."""

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        self._struct = struct

    @cached_property
    def _root(self) -> inspect.Type:
        return inspect.type_info(self._struct)

    def type_at(self, path: Path) -> inspect.Type | None:
        """The type of the value at `path`; None where there is no such key."""
        node: inspect.Type | None = self._root
        for part in path:
            if isinstance(node, inspect.StructType) and isinstance(part, str):
                node = {field.encode_name: field.type for field in node.fields}.get(part)
            elif isinstance(part, int):
                node = _item_type(node)
            else:
                return None
        return node

    def unknown(self, data: Any, path: Path = ()) -> Iterator[str]:
        """A sentence for every key in `data` that does not exist, naming the nearest one that does."""
        node = self.type_at(path)
        if isinstance(data, list) and _item_type(node) is not None:
            for index, item in enumerate(data):
                yield from self.unknown(item, (*path, index))
        if not isinstance(data, dict) or not isinstance(node, inspect.StructType):
            return
        names = [field.encode_name for field in node.fields]
        for key, value in data.items():
            if key in names:
                yield from self.unknown(value, (*path, key))
            else:
                yield f"unknown key {path_text((*path, str(key)))!r}; {nearest(str(key), names)}"

    def allowed_at(self, path: Path) -> str:
        """In words, what the value at `path` may be."""
        node = self.type_at(path)
        return "a value that the key knows" if node is None else _words(node)


def nearest(word: str, names: list[str]) -> str:
    """A hint at the likeliest of `names` that `word` was meant to be, or all of them."""
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(names)}"


def _item_type(node: inspect.Type | None) -> inspect.Type | None:
    if isinstance(node, inspect.UnionType):
        return next((item for kind in node.types if (item := _item_type(kind)) is not None), None)
    if isinstance(node, inspect.VarTupleType | inspect.ListType):
        return node.item_type
    return None


def _words(node: inspect.Type) -> str:
    match node:
        case inspect.UnionType():
            return " or ".join(_words(kind) for kind in node.types)
        case inspect.LiteralType():
            return " or ".join(repr(value) for value in node.values)
        case inspect.EnumType():
            return " or ".join(repr(member.value) for member in node.cls)
        case inspect.IntType():
            return "an integer" + _bounds(node)
        case inspect.FloatType():
            return "a number" + _bounds(node)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "text (quote what looks like a number)"
        case inspect.NoneType():
            return "null"
        case inspect.VarTupleType() | inspect.ListType():
            return f"a list of {_words(node.item_type)}"
        case inspect.StructType():
            required = [field.encode_name for field in node.fields if field.required]
            return "a mapping of keys" + (f" with at least {' and '.join(required)}" if required else "")
        case _:
            return type(node).__name__


def _bounds(node: inspect.IntType | inspect.FloatType) -> str:
    limits = {"≥": node.ge, ">": node.gt, "≤": node.le, "<": node.lt}
    return "".join(f" {sign} {limit}" for sign, limit in limits.items() if limit is not None)
