"""Sizes in bytes as people write them."""

import re

from common.errors import ConfigError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str | int) -> int:
    """Bytes of "1GiB", "512MB", "1.5 GiB" or 1073741824; at least 1. Raises ConfigError."""
    match = _SIZE.fullmatch(str(text).strip())
    unit = _UNITS.get(match[2].upper()) if match is not None else None
    if match is None or unit is None:
        raise ConfigError(
            f"{text!r} is not a size: write a number of bytes with an optional unit"
            " (KB, MB, GB, TB, KiB, MiB, GiB, TiB), such as '1GiB'"
        )
    size_bytes = int(match[1]) * unit if match[1].isdigit() else int(float(match[1]) * unit)
    if size_bytes < 1:
        raise ConfigError(f"{text!r} is no room at all: a size is at least 1 byte")
    return size_bytes
