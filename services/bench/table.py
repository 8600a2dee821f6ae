"""Rows for a person at a terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from services.bench.report import Row, Value

_MIB = 1 << 20


def rows_table(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> Table:
    """A table whose headings (keys) show columns (values) of `rows`; what a row does not have stays empty.

    A heading of MiB shows a column of bytes so.
    """
    table = Table(title=title, title_justify="left")
    for heading, column in columns.items():
        table.add_column(heading, justify="right" if _is_number(rows, column) else "left")
    for row in rows:
        table.add_row(*(_text(heading, row.get(column)) for heading, column in columns.items()))
    return table


def _is_number(rows: Sequence[Row], column: str) -> bool:
    return any(isinstance(row.get(column), int | float) for row in rows)


def _text(heading: str, value: Value) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() if heading == "MiB":
            return f"{value / _MIB:g}"
        case float():
            return f"{value:.3g}"
        case _:
            return str(value)
