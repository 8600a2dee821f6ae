"""docs/devices.md shows the catalogue as it is, and its example runs."""

import re
from pathlib import Path
from typing import Any

import pytest

from services.scheduling.profiles.profile import Origin
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.table import device_tables, sensitivity_table

PAGE = (Path(__file__).parents[3] / "docs" / "devices.md").read_text(encoding="utf-8")
CATALOGUE = load_catalogue()


@pytest.mark.parametrize(
    ("mark", "text"), [("devices", device_tables(CATALOGUE)), ("sensitivity", sensitivity_table(CATALOGUE))]
)
def test_the_page_shows_the_catalogue(mark: str, text: str) -> None:
    shown = PAGE.partition(f"<!-- {mark}: begin -->\n")[2].partition(f"<!-- {mark}: end -->")[0]
    assert shown == text, f"put the new table of {mark} into docs/devices.md; the page says how to print it"


@pytest.mark.parametrize("device", CATALOGUE.devices, ids=lambda device: device.name)
def test_recalled_and_estimated_figures_are_marked(device: DeviceSpec) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {device.name} | {device.vendor} |"))
    fields = ("fp16_tflops", "memory_mib", "memory_gb_s", "interconnect_gb_s", "host_link_gb_s", "tdp_w")
    figures = [getattr(device, field) for field in fields]
    assert row.count("*") == sum(figure.is_recalled for figure in figures)
    assert row.count("~") == sum(figure.is_estimated for figure in figures)
    assert ("fp16 only" in row) is not device.bf16


def test_the_device_of_ones_own_can_be_used(tmp_path: Path) -> None:
    block = PAGE.partition("<!-- own: begin -->\n")[2].partition("<!-- own: end -->")[0]
    (tmp_path / "mine.toml").write_text(re.sub("^    ", "", block, flags=re.MULTILINE))
    device = load_catalogue(own=tmp_path / "mine.toml").device("x100")
    assert (device.flops, device.interconnect_devices, device.price("ours")) == (125e12, 8, 1.5)
    named = set(re.findall(r"^    (\w+) = ", block, re.MULTILINE))
    assert named - {"ours", "sheet"} == set(DeviceSpec.__struct_fields__) - {"prices"}


def test_the_example_runs() -> None:
    (source,) = re.findall(r"(?:^(?:    .*)?\n)*    profile = .*\n", PAGE, re.MULTILINE)
    names: dict[str, Any] = {}
    exec(re.sub(r"^    ", "", source, flags=re.MULTILINE), names)
    assert names["profile"].origin is Origin.SPEC
