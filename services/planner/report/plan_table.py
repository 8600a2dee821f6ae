"""The best plans as a table for a person at a terminal."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rich import box
from rich.table import Table

from services.planner.report.plan_rows import Row
from services.planner.report.plan_words import NEEDS_RANKS

_Cell = str | int | float | bool | None
_Written = Callable[[float], str]


def _rate(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.1f} ms"


def _money(value: float) -> str:
    return f"{value:,.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


_COLUMNS: Mapping[str, tuple[str, _Written]] = MappingProxyType(
    {
        "": ("rank", _whole),
        "serving": ("serving", str),
        "plan": ("plan", str),
        "req/s\nclosed": ("closed_form_rps", _rate),
        "req/s\nsim.": ("simulated_rps", _rate),
        "at\nreq/s": ("shown_rps", _rate),
        "TTFT\nP99": ("ttft_p99_s", _seconds),
        "TPOT\nP99": ("tpot_p99_s", _milliseconds),
        "price/h": ("price_per_h", _money),
        "per M\ntokens": ("price_per_million_output_tokens", _money),
        "devices": ("devices", _whole),
        "costs": ("costs", str),
    }
)
"""Heading → column of the rows, and how its numbers are written."""


def plans_table(title: str, rows: Sequence[Row]) -> Table:
    """A line for each row of kind "plan"; without the columns that are empty in every row. No word is cut."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    shown = {head: column for head, column in _COLUMNS.items() if any(row[column[0]] is not None for row in rows)}
    marks = [_marks(row) for row in rows]
    for heading, (key, written) in shown.items():
        _add_column(table, heading, [_text(row[key], written) for row in rows], isinstance(rows[0][key], str))
    if any(marks):
        _add_column(table, "marks", marks, is_text=True)
    for row, mark in zip(rows, marks, strict=True):
        cells = [_text(row[key], written) for key, written in shown.values()]
        table.add_row(*cells, *([mark] if any(marks) else []))
    return table


def _add_column(table: Table, heading: str, texts: Sequence[str], is_text: bool) -> None:
    longest = max((len(word) for text in [heading, *texts] for word in text.split()), default=0)
    table.add_column(heading, justify="left" if is_text else "right", min_width=longest)


def _marks(row: Row) -> str:
    """What a person must know before taking the plan."""
    share = row["simulated_share"]
    marks = (
        (NEEDS_RANKS, row["needs_ranks"]),
        ("breaks limits", row["within_limits"] is False),
        (f"{share:.0%} of it simulated" if isinstance(share, float) else "", share not in (None, 1.0)),
        ("few requests", row["enough_requests"] is False),
        ("cannot be simulated", row["problem"] is not None),
    )
    return ", ".join(word for word, is_so in marks if is_so)


def _text(value: _Cell, written: _Written) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else written(value)
