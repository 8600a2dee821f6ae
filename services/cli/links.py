"""`pdmesh links`: what the self-tests of the links between the instances of a running mesh measured."""

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from common.messages.control import LinkMeasured
from services.cli.gateway_client import GatewayAt, ask


class _Answer(msgspec.Struct, frozen=True):
    links: list[LinkMeasured]


def show_links(at: GatewayAt, *, as_json: bool, console: Console) -> None:
    """Print the table of the mesh whose gateway serves there. Raises NoMesh."""
    links = fetch_links(at)
    if as_json:
        console.print_json(msgspec.json.encode(links).decode())
        return
    console.print(links_table(links))


def fetch_links(at: GatewayAt) -> Sequence[LinkMeasured]:
    """What the gateway knows. Raises NoMesh."""
    return ask(at, "/links", _Answer)[1].links


def links_table(links: Sequence[LinkMeasured]) -> Table:
    """One row for each backend of each pair; the first of a pair is the one in use."""
    table = Table("prefill", "decode", "backend", "GB/s", "round trip", "in use", "remark")
    for link in links:
        for index, figures in enumerate(link.figures):
            table.add_row(
                link.peer,
                link.instance,
                figures.backend,
                f"{figures.bytes_per_s / 1e9:.2f}",
                f"{figures.round_trip_s * 1e3:.2f} ms",
                "yes" if index == 0 else "",
                "; ".join(link.failed) if index == 0 else "",
            )
    return table
