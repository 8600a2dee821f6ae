"""Measured steps of one machine, as the public tables have them, in one form."""

import csv
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from common.errors import ConfigError
from services.simulator.hardware.models import ModelSpec


class Phase(StrEnum):
    """What is computed in a measured step."""

    PREFILL = "prefill"
    """One whole prompt."""
    PREFILL_BATCHED = "prefill of several"
    """Several whole prompts in one step."""
    DECODE = "decode"


class MeasuredStep(msgspec.Struct, frozen=True):
    """What one step took: of whole prompts, or of decodes."""

    seconds: float
    is_profiled: bool
    """In the small set that a light profiling would measure: fitted to. The others are predicted."""
    prompts: tuple[int, ...] = ()
    """Their tokens."""
    sequences: int = 0
    """That decode."""
    context: int = 0
    """Of those sequences, summed; 0 where the table does not say."""
    resolution_s: float = 0.0
    """`seconds` was rounded to a multiple of this."""

    @property
    def phase(self) -> Phase:
        """Which kind of step it is."""
        if not self.prompts:
            return Phase.DECODE
        return Phase.PREFILL if len(self.prompts) == 1 else Phase.PREFILL_BATCHED


class SpecSubject(msgspec.Struct, frozen=True):
    """What the spec-based model is asked about."""

    device: str
    """A name of the catalogue."""
    model: ModelSpec


class MeasuredCase(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of one model on one kind of machine."""

    table: str
    model: str
    device: str
    """As the table calls it, devices of one machine not counted."""
    tp: int
    steps: tuple[MeasuredStep, ...]
    spec: SpecSubject | None = None
    """None: the architecture or the device is not one that the spec-based model knows."""
    has_contexts: bool = True
    """Whether steps of decodes say their contexts; if not, what contexts cost is in the cost per sequence."""
    assumed_context: int = 0
    """Of each sequence, for the spec-based model, where the table does not say."""
    assumed_prompt: int | None = None
    """Tokens of each prompt, for the spec-based model, where the table gives only their sum."""


def table_rows(folder: Path, name: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The rows of the CSV file `name` in `folder`, which must have `columns`. Raises ConfigError."""
    file = folder / name
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"{str(file)!r} has no column {', '.join(map(repr, missing))}; it must be the table")
            for row in reader:
                if None in row.values():
                    raise ConfigError(f"{str(file)!r} line {reader.line_num} is cut short; fetch the table again")
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the measured table {str(file)!r} cannot be read: {error}") from error


def number(row: dict[str, str], column: str) -> float:
    """The figure of `row` in `column`. Raises ConfigError."""
    try:
        return float(row[column])
    except ValueError as error:
        raise ConfigError(f"a measured table has {row[column]!r} as {column}; it must be a number") from error
