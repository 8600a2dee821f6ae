"""Mooncake's traces: one JSON object a line, with the identities of the prompt's blocks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from services.simulator.workload.errors import TraceError, shown
from services.simulator.workload.lines import numbered_lines
from services.simulator.workload.requests import MAX_TOKENS, Workload
from services.simulator.workload.rows import Row, workload_from

TITLE = "Mooncake trace"

_Length = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]


class _Line(msgspec.Struct, frozen=True):
    """What a line holds; other keys may stand beside these."""

    timestamp: Annotated[float, msgspec.Meta(ge=0, le=1e15)]
    """Milliseconds."""
    input_length: _Length
    output_length: _Length
    hash_ids: tuple[int, ...] = ()


def read_mooncake(path: Path, limit: int | None = None, keep_hash_ids: bool = False) -> Workload:
    """The first `limit` requests (None: all) of such a trace, plain or gzipped.

    Raises TraceError that names file and line: no JSON object with `timestamp` (milliseconds), `input_length` and
    `output_length`, a length that is not a whole number from 1 to MAX_TOKENS, a time before the one above, no rows.
    """
    return workload_from(path, TITLE, _rows(path, keep_hash_ids), is_timed=True, limit=limit)


def _rows(path: Path, keep_hash_ids: bool) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(_Line)
    for number, text in numbered_lines(path):
        try:
            line = decoder.decode(text)
        except msgspec.DecodeError as error:
            raise TraceError.at(path, number, f"{error}, in {shown(text)}") from error
        yield Row(
            line=number,
            time_ns=round(line.timestamp * 1e6),
            prompt_tokens=line.input_length,
            output_tokens=line.output_length,
            hash_ids=line.hash_ids if keep_hash_ids else (),
        )
