"""The device files: complete, sourced, found by name; and what is derived from a device's figures."""

import math
from pathlib import Path

import msgspec
import pytest

from common.errors import ConfigError
from services.simulator.hardware.catalogue import Catalogue, load_catalogue, with_own
from services.simulator.hardware.device import DeviceSpec, Figure, Vendor

CATALOGUE = load_catalogue()

FILE = """
[[devices]]
name = "X1"
vendor = "AMD"
fp16_tflops = [100, "sheet"]
memory_mib = [1000, "sheet"]
memory_gb_s = [500, "sheet"]
interconnect = "none"
interconnect_gb_s = [0, "sheet"]
host_link = "PCIe"
host_link_gb_s = [32, "sheet"]
tdp_w = [100, "sheet"]
compute_efficiency = [0.5, "recalled"]
memory_efficiency = [0.75, "estimated", "a guess"]
step_overhead_ms = [0, "sheet"]
"""


def folder(tmp_path: Path, text: str, sources: str = 'sheet = ""\nrecalled = ""\nestimated = ""') -> Path:
    (tmp_path / "sources.toml").write_text(f"[sources]\n{sources}\n")
    (tmp_path / "a.toml").write_text(text)
    return tmp_path


def test_every_vendor_has_a_device_and_the_paper_pairs_are_there() -> None:
    assert {device.vendor for device in CATALOGUE.devices} == set(Vendor) - {Vendor.OTHER}
    assert {"A100 80GB SXM", "A10", "A30", "MI300X", "Ascend 910B", "Gaudi2", "Xeon 8480+"} <= set(CATALOGUE.names())


@pytest.mark.parametrize(
    ("name", "tflops", "gb_s"),
    [("A100 80GB SXM", 210, 1631), ("A10", 60, 480), ("A30", 95, 746), ("V100 16GB SXM2", 90, 594), ("T4", 27, 227)],
)
def test_effective_rates_are_those_of_the_measurements(name: str, tflops: float, gb_s: float) -> None:
    device = CATALOGUE.device(name)
    assert device.flops / 1e12 == pytest.approx(tflops, rel=0.02)
    assert device.bytes_per_s / 1e9 == pytest.approx(gb_s, rel=0.01)


def test_no_common_efficiency_makes_the_a10_look_fast() -> None:
    a100, a10 = CATALOGUE.device("a100"), CATALOGUE.device("a10")
    on_paper = a100.fp16_tflops.value / a10.fp16_tflops.value
    assert on_paper == pytest.approx(2.5, abs=0.01)
    assert a100.flops / a10.flops == pytest.approx(3.5, abs=0.05)


@pytest.mark.parametrize("name", ["a100", "A100-80GB-SXM", "a100 80gb sxm", "A100_80GB"])
def test_names_are_found_whatever_their_spelling(name: str) -> None:
    assert CATALOGUE.device(name).name == "A100 80GB SXM"


def test_an_unknown_device_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(ConfigError, match=r"'A1O0 80GB' is not in the catalogue; did you mean 'A100 80GB") as error:
        CATALOGUE.device("A1O0 80GB")
    for name in CATALOGUE.names():
        assert name in str(error.value)
    with pytest.raises(ConfigError, match=r"in the catalogue; it has A100.*; to add one, describe it in a TOML file"):
        CATALOGUE.device("quantum")


def test_every_estimate_says_from_what() -> None:
    silent = [
        (device.name, field)
        for device in CATALOGUE.devices
        for field, figure in device.figures()
        if figure.is_estimated and not figure.note and field != "step_overhead_ms"
    ]
    assert silent == []


def test_every_source_is_used_and_recalled_figures_are_marked() -> None:
    used = {figure.source for device in CATALOGUE.devices for _, figure in device.figures()}
    assert used == set(CATALOGUE.sources)
    recalled = {field for field, figure in CATALOGUE.device("4090").figures() if figure.is_recalled}
    assert recalled == {"fp16_tflops", "memory_gb_s", "interconnect_gb_s", "host_link_gb_s", "tdp_w"}


def test_memory_is_what_the_driver_offers_and_below_the_nominal_size() -> None:
    for name, nominal in [("A10", 24), ("A30", 24), ("A100 80GB SXM", 80), ("T4", 16), ("H200 SXM", 141)]:
        offered = CATALOGUE.device(name).memory_bytes / 2**30
        assert 0.9 * nominal < offered < nominal


def test_fp16_only_devices_refuse_bfloat16_with_the_remedy() -> None:
    assert {device.name for device in CATALOGUE.devices if not device.bf16} == {
        "V100 16GB SXM2",
        "V100 32GB SXM2",
        "T4",
    }
    with pytest.raises(ConfigError, match="T4 cannot compute in bfloat16; give its instances dtype float16"):
        CATALOGUE.device("T4").require_dtype("bfloat16")
    CATALOGUE.device("T4").require_dtype("float16")
    with pytest.raises(ConfigError, match="only 16-bit rates"):
        CATALOGUE.device("A100").require_dtype("float32")


def test_assumptions_change_what_they_name_and_are_marked() -> None:
    a10 = CATALOGUE.device("A10")
    assumed = a10.assuming(compute_efficiency=0.24, step_overhead_s=0.002)
    assert assumed.flops == pytest.approx(a10.flops / 2)
    assert assumed.bytes_per_s == a10.bytes_per_s
    assert assumed.step_overhead_s == pytest.approx(0.002)
    assert assumed.compute_efficiency.is_estimated
    assert a10.assuming() == a10
    for wrong in (0.0, -0.5, 1.2, math.nan):
        with pytest.raises(ConfigError, match=r"compute_efficiency of A10 is .*; it must be above 0 and at most 1"):
            a10.assuming(compute_efficiency=wrong)


def test_prices_belong_to_a_list() -> None:
    a100 = CATALOGUE.device("A100")
    assert a100.price("oci") == 4.0
    assert a100.price("nowhere") is None


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    device = load_catalogue(folder(tmp_path, FILE)).device("x1")
    assert device.flops == 50e12
    assert device.bytes_per_s == 375e9
    assert device.memory_bytes == 1000 * 2**20
    assert device.compute_efficiency == Figure(0.5, "recalled")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE.replace('[100, "sheet"]', '[100, "shete"]', 1), "fp16_tflops of X1 has the source 'shete'"),
        (FILE.replace("0.5", "1.5"), "compute_efficiency of X1 is 1.5"),
        (FILE.replace("[500,", "[0,"), "memory_gb_s of X1 is 0"),
        (FILE.replace("[500,", "[inf,"), "memory_gb_s of X1 is inf"),
        (FILE.replace("[32,", "[-32,"), "host_link_gb_s of X1 is -32"),
        (FILE + FILE.replace("X1", "x-1"), "'x-1' names both X1 and x-1"),
        (FILE.replace("tdp_w", "tdp"), "a.toml.*tdp"),
        (FILE.replace('"AMD"', '"ADM"'), "a.toml.*ADM"),
        ("[[devices", "a.toml"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_catalogue(folder(tmp_path, text))


OWN = FILE.replace('"AMD"', '"other"').replace('[100, "sheet"]', '[100, "ours"]', 1)


def test_devices_of_ones_own_beside_the_packages(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN.replace('"sheet"', '"recalled"') + '[sources]\nours = "our own runs"\n')
    catalogue = with_own(CATALOGUE, tmp_path / "mine.toml")
    assert catalogue.device("x1").vendor is Vendor.OTHER
    assert catalogue.names() == (*CATALOGUE.names(), "X1")
    assert catalogue.sources["ours"] == "our own runs"
    assert load_catalogue(own=tmp_path).device("x-1") == catalogue.device("X1")
    assert "X1" not in CATALOGUE.names()


def test_a_device_of_ones_own_replaces_the_packages(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(FILE.replace("X1", "a10").replace('"sheet"', '"recalled"'))
    catalogue = with_own(CATALOGUE, tmp_path / "mine.toml")
    assert catalogue.device("A10").flops == 50e12
    assert len(catalogue.devices) == len(CATALOGUE.devices)
    (tmp_path / "mine.toml").write_text(FILE.replace("X1", "a100").replace('"sheet"', '"recalled"'))
    with pytest.raises(ConfigError, match="'a100' names both A100 80GB SXM and a100; rename one"):
        with_own(CATALOGUE, tmp_path)


def test_own_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no \*\.toml with devices; to add one"):
        with_own(CATALOGUE, tmp_path)
    with pytest.raises(ConfigError, match=r"device file 'gone\.toml' cannot be used"):
        with_own(CATALOGUE, tmp_path / "gone.toml")
    (tmp_path / "mine.toml").write_text(OWN)
    with pytest.raises(
        ConfigError, match=r"of X1 has the source 'ours'; known are .* or explain yours under \[sources\]"
    ):
        with_own(CATALOGUE, tmp_path / "mine.toml")


def test_devices_are_values() -> None:
    assert isinstance(CATALOGUE, Catalogue)
    device = CATALOGUE.devices[0]
    with pytest.raises(AttributeError):
        device.name = "other"  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(device), type=DeviceSpec) == device
