"""The real compose command accepts what `pdmesh compose` writes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.docker

CPU = """
instances:
  - {id: p0, role: prefill, threads: 2}
  - {id: d0, role: decode, cpu_affinity: [1, 2]}
"""
CUDA = """
instances:
  - {id: p0, role: prefill, device: "cuda:1"}
  - {id: d0, role: decode}
"""
ROCM = """
instances:
  - {id: p0, role: prefill}
  - {id: d0, role: decode, device: "rocm:3"}
"""
SEVERAL = """
gateway: {http: "0.0.0.0:8000", control_keys: keys}
transfer: {trusted_network: true}
instances:
  - {id: p0, role: prefill, host: big, device: "cuda:0"}
  - {id: d0, role: decode, host: small, device: "rocm:0"}
"""


ROOT = Path(__file__).parents[2]


def top_level(compose: tuple[str, ...], *flags: str) -> dict[str, dict[str, Any]]:
    """The services of this repository's own files."""
    done = subprocess.run((*compose, *flags, "config"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    return yaml.safe_load(done.stdout)["services"]


def understood(compose: tuple[str, ...], folder: Path, text: str) -> dict[str, dict[str, Any]]:
    """The services that compose reads from each file for `text`."""
    (folder / "mesh.yaml").write_text(text)
    command = (sys.executable, "-m", "services.cli.main", "compose", "mesh.yaml")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    written = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=True)
    found = {}
    for name in written.stdout.split():
        done = subprocess.run((*compose, "-f", name, "config"), cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower()
        found[name] = yaml.safe_load(done.stdout)["services"]
    return found


def test_cpu(compose: tuple[str, ...], tmp_path: Path) -> None:
    services = understood(compose, tmp_path, CPU)["compose.yaml"]
    assert set(services) == {"keys", "model", "gateway", "p0", "d0"}
    assert float(services["p0"]["cpus"]) == 2
    assert services["d0"]["cpuset"] == "1,2"
    assert services["d0"]["depends_on"]["model"]["condition"] == "service_completed_successfully"


def test_cuda(compose: tuple[str, ...], tmp_path: Path) -> None:
    services = understood(compose, tmp_path, CUDA)["compose.yaml"]
    (device,) = services["p0"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["device_ids"], device["capabilities"]) == ("nvidia", ["1"], ["gpu"])
    assert "deploy" not in services["d0"]


def test_rocm(compose: tuple[str, ...], tmp_path: Path) -> None:
    services = understood(compose, tmp_path, ROCM)["compose.yaml"]
    assert services["d0"]["environment"]["ROCR_VISIBLE_DEVICES"] == "3"
    assert len(services["d0"]["devices"]) == 2
    assert services["d0"]["group_add"] == ["video", "render"]
    assert "devices" not in services["p0"]


def test_several_machines(compose: tuple[str, ...], tmp_path: Path) -> None:
    found = understood(compose, tmp_path, SEVERAL)
    assert {name: set(services) for name, services in found.items()} == {
        "compose.big.yaml": {"model", "gateway", "p0"},
        "compose.small.yaml": {"model", "d0"},
    }
    assert found["compose.small.yaml"]["d0"]["network_mode"] == "host"


def source_at(service: dict[str, Any], target: str) -> str:
    """What is mounted at `target`, once."""
    (found,) = (mount["source"] for mount in service["volumes"] if mount["target"] == target)
    return str(found)


def test_the_mesh_of_this_repository(compose: tuple[str, ...]) -> None:
    services = top_level(compose, "-f", "compose.yaml")
    assert {"keys", "model", "gateway", "p0", "d0"} <= set(services)
    assert services["d0"]["depends_on"]["keys"]["condition"] == "service_completed_successfully"
    assert source_at(services["d0"], "/etc/pdmesh") == str(ROOT / "deploy" / "mesh")
    assert services["d0"]["build"]["args"]["TORCH"].endswith("/cpu")


def test_its_metrics(compose: tuple[str, ...]) -> None:
    services = top_level(compose, "-f", "compose.yaml", "--profile", "metrics")
    assert services["grafana"]["profiles"] == services["prometheus"]["profiles"] == ["metrics"]


def test_its_override_for_cuda(compose: tuple[str, ...]) -> None:
    services = top_level(compose, "-f", "compose.yaml", "-f", "compose.cuda.yaml")
    for name in ("p0", "d0"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["device_ids"], device["capabilities"]) == ("nvidia", ["0"], ["gpu"])
        assert services[name]["image"] == "pdmesh:cuda"
        assert services[name]["build"]["args"] == {"BASE": "python:3.11-slim", "TORCH": "torch==2.13.0"}
        assert source_at(services[name], "/run/pdmesh-keys").endswith("keys")
    assert "deploy" not in services["gateway"]
    for name in ("keys", "model", "gateway", "p0", "d0"):
        assert source_at(services[name], "/etc/pdmesh") == str(ROOT / "deploy" / "mesh.cuda")


def test_its_override_for_rocm(compose: tuple[str, ...]) -> None:
    services = top_level(compose, "-f", "compose.yaml", "-f", "compose.rocm.yaml")
    for name in ("p0", "d0"):
        assert len(services[name]["devices"]) == 2
        assert services[name]["group_add"] == ["video", "render"]
        assert set(services[name]["security_opt"]) == {"no-new-privileges:true", "seccomp=unconfined"}
        assert services[name]["environment"]["ROCR_VISIBLE_DEVICES"] == "0"
        assert services[name]["environment"]["PDMESH_GATEWAY__CONTROL"] == "tcp://gateway:5700"
    assert "devices" not in services["gateway"]
    assert source_at(services["gateway"], "/etc/pdmesh") == str(ROOT / "deploy" / "mesh.rocm")
