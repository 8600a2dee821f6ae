"""`pdmesh keys api`: the keys of clients, written to the file that the gateway reads."""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from common.config.load import load_mesh
from common.errors import ConfigError
from services.gateway.http.api_keys import SECRET_BYTES, KeyLines, key_of, name_problem, read_lines, stored

_DEFAULT: Final = "api-keys"
_MODE: Final = 0o600


def keys_file(file: Path | None, config: Path | None, environ: Mapping[str, str]) -> Path:
    """The file that is meant: `file`, else what the configuration says, else `api-keys` here. Raises ConfigError."""
    return file or Path(load_mesh(config, environ, {}).gateway.api_keys or _DEFAULT)


def add_client_key(file: Path, name: str) -> str:
    """A new key, of which `file` has the hash from now on; what to do with it is said on stderr. Raises ConfigError."""
    if (problem := name_problem(name)) is not None:
        raise ConfigError(problem)
    text = _read(file) if file.exists() else ""
    if any(known.name == name for known in _checked(file, text).keys):
        raise ConfigError(
            f"{str(file)!r} has a key of the name {name!r} already; take another name, or take that key back with "
            f"`pdmesh keys api {name} --revoke`"
        )
    key = key_of(secrets.token_bytes(SECRET_BYTES))
    line = f"{stored(name, key).line()}\n"
    # One write at the end of the file: a gateway that reads meanwhile sees the line whole, or not yet.
    _append(file, line if not text or text.endswith("\n") else f"\n{line}")
    _say(
        f"the key of {name!r}, which is shown this once; its hash is in {file}. The gateway asks for keys where "
        f"gateway.api_keys: {file} is set"
    )
    return key


def revoke_client_key(file: Path, name: str) -> None:
    """Take the key of `name` out of `file`; the other lines stay as they are. Raises ConfigError."""
    text = _read(file)
    names = [known.name for known in _checked(file, text).keys]
    if name not in names:
        raise ConfigError(f"{str(file)!r} has no key of the name {name!r}; it has {', '.join(names) or 'none'}")
    kept = [line for line in text.splitlines(keepends=True) if line.partition("#")[0].split()[:1] != [name]]
    _replace(file, "".join(kept))
    _say(f"the key of {name!r} is taken back; gateways that use {file} let it in for a second more")


def _checked(file: Path, text: str) -> KeyLines:
    lines = read_lines(text)
    if lines.problems:
        raise ConfigError(f"{str(file)!r}: {'; '.join(lines.problems)}")
    return lines


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API keys in {str(file)!r}: {error}; name the file with --file") from error


def _append(file: Path, text: str) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _MODE)
        with os.fdopen(descriptor, "a", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise _unwritable(file, error) from error


def _replace(file: Path, text: str) -> None:
    """Give `file` a new, shorter content, in place: a container that has it mounted would not see another file there.

    Whoever reads between the two steps finds the end of the old content too, and the new one at the next look.
    """
    try:
        with file.open("r+b", buffering=0) as opened:
            opened.write(text.encode())
            opened.truncate()
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write the API keys to {str(file)!r}: {error.strerror}; name another with --file")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
