"""What several commands do with their flags: write them as a command line, find the public traces."""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec


def command_line(flags: msgspec.Struct, *words: str, without: Collection[str] = ()) -> str:
    """`pdmesh` and `words`, then the flags that are not as by default, but for the fields `without`."""
    line = ["pdmesh", *words]
    for field in msgspec.structs.fields(flags):
        value = getattr(flags, field.name)
        if field.name in without or value == field.default:
            continue
        line.append(f"--{field.name.replace('_', '-')}")
        line += [] if value is True else [str(value)]
    return shlex.join(line)


def data_folder(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The folder of public traces: what --data gives, else PDMESH_DATA; None: nobody has said."""
    return given or (Path(environ["PDMESH_DATA"]) if environ.get("PDMESH_DATA") else None)
