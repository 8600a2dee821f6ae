import io
from collections.abc import Iterator

import msgspec
import pytest
from rich.console import Console

from common.ids import Generation, InstanceId
from common.messages.control import LinkFigures, LinkMeasured
from services.cli.gateway_client import NoMesh
from services.cli.links import fetch_links, show_links
from tests.unit.cli.http_case import serving

LINK = LinkMeasured(
    InstanceId("d0"),
    Generation(1),
    InstanceId("p0"),
    Generation(2),
    (LinkFigures("shm", 9.1e9, 7e-5), LinkFigures("tcp", 2.5e9, 1.2e-4)),
    ("fast://x: no such device",),
)


def answer(path: str) -> tuple[int, bytes]:
    return (200, msgspec.json.encode({"links": [LINK]})) if path == "/links" else (404, b"<html>")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(answer) as url:
        yield url


def shown(url: str, *, as_json: bool) -> str:
    out = io.StringIO()
    show_links(url, as_json=as_json, console=Console(file=out, width=200))
    return out.getvalue()


def test_the_table_names_both_ends_and_the_rates(url: str) -> None:
    text = shown(url, as_json=False)
    (best,) = (line for line in text.splitlines() if "shm" in line)
    for word in ("p0", "d0", "9.10", "0.07 ms", "yes", "no such device"):
        assert word in best
    (other,) = (line for line in text.splitlines() if "tcp" in line)
    assert "2.50" in other
    assert "yes" not in other


def test_json_is_what_the_gateway_said(url: str) -> None:
    assert msgspec.json.decode(shown(url, as_json=True), type=list[LinkMeasured]) == [LINK]


def test_nobody_there_or_somebody_else(url: str) -> None:
    for wrong in ("http://127.0.0.1:1", f"{url}/elsewhere", "nonsense"):
        with pytest.raises(NoMesh, match="--url"):
            fetch_links(wrong)
