"""From a JSON Schema to a rule of a grammar (common.grammar).

Pure, and without the library: whether that takes a schema shows when the grammar is compiled.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from common.errors import GrammarRefused

MOST_SCHEMA_BYTES: Final = 1 << 16
"""Of one schema as compact JSON."""

MOST_SCHEMA_DEPTH: Final = 64
"""Objects and lists within each other. An object's property is two levels down: some thirty objects in one another."""

ANY_OBJECT: Final[Mapping[str, Any]] = MappingProxyType({"type": "object"})

_STYLE: Final = MappingProxyType(
    {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?", "lenient": False}
)
"""At most one space after a comma or a colon: with any white space allowed, small models write nothing else."""


def json_rule(schema: Mapping[str, Any]) -> str:
    """What matches the JSON texts of `schema`, without a name. Raises GrammarRefused for too large a schema.

    References within the schema count from its own root, wherever the rule stands in a grammar.
    """
    _check_depth(schema)
    # A schema's own word on style would let it ask for what the check above bounds.
    text = msgspec.json.encode({**schema, "x-guidance": dict(_STYLE)})
    if len(text) > MOST_SCHEMA_BYTES:
        raise GrammarRefused(f"the schema has {len(text)} bytes as compact JSON; the limit is {MOST_SCHEMA_BYTES}")
    return f"%json {text.decode()}"


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of an answer that is one JSON text of `schema`. Raises GrammarRefused as `json_rule` does."""
    return f"start: answer\nanswer: {json_rule(schema)}\n"


def _check_depth(schema: Mapping[str, Any]) -> None:
    level: list[Any] = [schema]
    depth = 0
    while level := [inner for value in level for inner in _inside(value)]:
        depth += 1
        if depth > MOST_SCHEMA_DEPTH:
            raise GrammarRefused(f"the schema is nested more than {MOST_SCHEMA_DEPTH} levels deep; make it flatter")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []
