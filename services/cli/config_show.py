"""`pdmesh config show`: every value of a configuration, where it comes from, and what it means."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.config.load import LoadedMesh, Source, load_mesh_with_sources
from common.config.reference import KeyEntry, key_entries
from common.config.types import MeshConfig


class Shown(msgspec.Struct, frozen=True):
    """One value."""

    key: str
    value: str
    source: str
    meaning: str


def show_config(path: Path | None, environ: Mapping[str, str], *, as_json: bool, every: bool, console: Console) -> None:
    """Print the configuration; defaults only with `every`. Raises ConfigError."""
    values = values_of(load_mesh_with_sources(path, environ, {}))
    shown = [one for one in values if every or one.source != Source.DEFAULT]
    if as_json:
        console.print_json(msgspec.json.encode(shown).decode())
    elif not shown:
        console.print("every value is its default; `pdmesh config show --all` lists them")
    else:
        console.print(_table(shown))


def explain_key(name: str, console: Console) -> bool:
    """Print what a key means; whether there is one of that name. `block_size` and `instances[].block_size` both do."""
    found = [entry for entry in key_entries(MeshConfig) if entry.path == name or entry.path.endswith(f".{name}")]
    for entry in found:
        console.print(f"{entry.path}: {entry.allowed}; default {entry.default or '–'}", markup=False, highlight=False)
        console.print(f"  {entry.meaning}", markup=False, highlight=False)
    return bool(found)


def values_of(loaded: LoadedMesh) -> Iterator[Shown]:
    """In the order of the types; of lists each item's."""
    entries = {entry.path: entry for entry in key_entries(MeshConfig)}
    for path, value in _leaves(msgspec.to_builtins(loaded.config)):
        entry = entries.get(re.sub(r"\[\d+\]", "[]", path))
        text = msgspec.json.encode(value).decode()
        yield Shown(path, text, loaded.source(path).value, "" if entry is None else entry.meaning)


def _leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    match data:
        case dict():
            for key, value in data.items():
                yield from _leaves(value, f"{path}.{key}" if path else key)
        case [dict(), *_]:
            for index, value in enumerate(data):
                yield from _leaves(value, f"{path}[{index}]")
        case _:
            yield path, data


def _table(shown: Sequence[Shown]) -> Table:
    table = Table("key", "value", "from", "meaning")
    for one in shown:
        table.add_row(Text(one.key), Text(one.value), one.source, Text(one.meaning))
    return table


def reference_rows(entries: Sequence[KeyEntry]) -> Iterator[str]:
    """The rows of docs/configuration.md's table."""
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for entry in entries:
        default = f"`{entry.default}`" if entry.default else ""
        yield f"| `{entry.path}` | {entry.allowed} | {default} | {entry.meaning} |".replace("|  |", "| |")


def main() -> None:
    """Print the reference for docs/configuration.md."""
    print("\n".join(reference_rows(list(key_entries(MeshConfig)))))


if __name__ == "__main__":
    main()
