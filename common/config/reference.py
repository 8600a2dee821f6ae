"""Every key of mesh.yaml with its type, default and meaning, read from the config types and their docstrings."""

import ast
import inspect as python_inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import NODEFAULT, inspect

from common.config.keys import KeyTree

_NO_DEFAULT = "required"


class KeyEntry(msgspec.Struct, frozen=True):
    """One key."""

    path: str
    """As people write it; keys of a list's items stand below `instances[]`."""
    allowed: str
    """In words, what its value may be."""
    default: str
    """As YAML would have it in a line; `required` where there is none."""
    meaning: str


def key_entries(struct: type[msgspec.Struct], path: str = "") -> Iterator[KeyEntry]:
    """The keys below `struct`, in the order of the types; sections stand before their keys."""
    tree, docs = KeyTree(struct), _docs(struct)
    information = inspect.type_info(struct)
    assert isinstance(information, inspect.StructType)
    for field in information.fields:
        name = f"{path}.{field.encode_name}" if path else field.encode_name
        below = _struct_in(field.type)
        if below is None:
            yield KeyEntry(name, tree.allowed_at((field.encode_name,)), _default(field), docs.get(field.name, ""))
            continue
        is_list = isinstance(field.type, inspect.VarTupleType)
        meaning = docs.get(field.name) or _first_line(below)
        yield KeyEntry(f"{name}[]" if is_list else name, "a list of mappings" if is_list else "a mapping", "", meaning)
        yield from key_entries(below, f"{name}[]" if is_list else name)


def _struct_in(kind: inspect.Type) -> type[msgspec.Struct] | None:
    match kind:
        case inspect.StructType():
            return kind.cls
        case inspect.VarTupleType():
            return _struct_in(kind.item_type)
        case inspect.UnionType():
            return next((found for one in kind.types if (found := _struct_in(one)) is not None), None)
        case _:
            return None


def _default(field: inspect.Field) -> str:
    value: Any = field.default
    if value is NODEFAULT and field.default_factory is not NODEFAULT:
        value = field.default_factory()
    if value is NODEFAULT:
        return _NO_DEFAULT
    return msgspec.json.encode(value).decode()


def _docs(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string that stands below each attribute, on one line; of the types that it inherits from too."""
    docs: dict[str, str] = {}
    for kind in reversed(struct.__mro__):
        if issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct:
            docs |= _own_docs(kind)
    return docs


def _own_docs(struct: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(python_inspect.getsource(struct))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    waiting: list[str] = []
    for statement in definition.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)):
                waiting.append(name)
            case ast.Expr(value=ast.Constant(value=str(text))) if waiting:
                # One docstring may explain several keys that stand above it.
                docs |= dict.fromkeys(waiting[-1:], " ".join(text.split()))
                waiting.clear()
            case _:
                waiting.clear()
    return docs


def _first_line(struct: type) -> str:
    return (struct.__doc__ or "").strip().partition("\n")[0]
