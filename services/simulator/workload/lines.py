"""The text of a trace file, plain or gzipped, line by line."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from services.simulator.workload.errors import TraceError

MAX_LINE_CHARS = 1 << 20
"""Longer lines are refused, so that a file that is no trace is not read into memory as one line."""

_GZIP_MAGIC = b"\x1f\x8b"
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1, without its end; blank lines are counted and left out.

    Raises TraceError where the file cannot be opened or unpacked, is not UTF-8, or has a line over MAX_LINE_CHARS.
    """
    number = 0
    try:
        with _open_text(path) as file:
            while line := file.readline(MAX_LINE_CHARS + 1):
                number += 1
                if len(line) > MAX_LINE_CHARS:
                    raise TraceError.at(path, number, f"over {MAX_LINE_CHARS:,} characters long; this is no trace")
                if line.strip():
                    yield number, line.rstrip("\n")
    except _UNREADABLE as error:
        # Files are read ahead: the damage may lie some lines further.
        place = f", after line {number}," if number else ""
        raise TraceError(f"{path}{place} cannot be read: {_reason(error)}") from error


def trace_sha256(path: Path) -> str:
    """The sha256 of a trace's content, in hex: of what is inside where the file is gzipped.

    So a trace keeps its checksum however it is packed.  Raises TraceError where the file cannot be read.
    """
    try:
        with _open_bytes(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except _UNREADABLE as error:
        raise TraceError(f"{path} cannot be read: {_reason(error)}") from error


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC


def _open_text(path: Path) -> TextIO:
    # utf-8-sig drops the mark that spreadsheets put before the first column's name.
    if _is_gzipped(path):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _open_bytes(path: Path) -> BufferedReader | gzip.GzipFile:
    return gzip.open(path) if _is_gzipped(path) else path.open("rb")


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
