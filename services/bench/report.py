"""The one shape that every benchmark writes: where and when it ran, rows, and a summary of ratios."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from services.bench.machine import Machine

Value = str | int | float | bool | None
Row = Mapping[str, Value]
"""Flat. `where` and `repeats` are in every row; a measured X is a median, and X_min and X_max stand beside it."""


class Where(StrEnum):
    """What a row was measured on."""

    REAL = "real"
    EMULATED = "emulated"
    """Something in it was made slower, or only waited for, on purpose."""
    SIMULATED = "simulated"
    GPU = "gpu"


class Report(msgspec.Struct, frozen=True):
    """One run of one command."""

    command: str
    commit: str
    date: str
    """ISO 8601, UTC."""
    machine: Machine
    rows: tuple[Row, ...]
    summary: Mapping[str, float]


def write_report(report: Report, file: Path) -> None:
    """As JSON, made to be read and compared by lines. Raises OSError."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
