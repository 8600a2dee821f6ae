"""The compose.yaml of this repository, its overrides and its dashboard: what they must agree with."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from common.config.load import load_mesh
from common.config.types import MeshConfig
from common.errors import ConfigError
from common.metrics import Metrics
from services.cli.compose import ComposeFlags, run_compose
from services.launch.compose import compose_stack
from services.launch.compose_settings import ComposeSettings, ComposeStack

ROOT = Path(__file__).parents[3]
METRICS = {"prometheus", "grafana"}
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "pdmesh.json"


def written(device: str) -> ComposeStack:
    """What `pdmesh compose` makes of the default mesh, its instances on `device`."""
    default = MeshConfig()
    instances = tuple(msgspec.structs.replace(each, device=device) for each in default.instances)
    dtype = "float32" if device == "cpu" else "bfloat16"
    mesh = msgspec.structs.replace(default, instances=instances, dtype=dtype)
    return compose_stack(mesh, ComposeSettings(files="./deploy/mesh"))


def by_hand(name: str) -> dict[str, Any]:
    """A file as compose reads it where no variable is set."""
    return without_variables((ROOT / name).read_text())


def without_variables(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return found


def comparable(service: dict[str, Any]) -> dict[str, Any]:
    """Without what builds an image, and mounts in no order."""
    mounts = sorted(service["volumes"], key=lambda mount: str(mount["target"]))
    return {**service, "volumes": mounts, "build": None}


def test_compose_yaml_is_what_pdmesh_compose_writes_for_the_default_mesh() -> None:
    (theirs,) = (file.document for file in written("cpu").files)
    ours = by_hand("compose.yaml")
    services = {name: service for name, service in ours["services"].items() if name not in METRICS}
    assert list(services) == list(theirs["services"])
    for name, service in services.items():
        assert comparable(service) == comparable(theirs["services"][name]), name
    assert ours["networks"] == theirs["networks"]
    assert ours["volumes"] == theirs["volumes"] | {"prometheus": {}}
    assert all(ours["services"][name]["profiles"] == ["metrics"] for name in METRICS)


@pytest.mark.parametrize(("folder", "device"), [("mesh", "cpu"), ("mesh.cuda", "cuda:0"), ("mesh.rocm", "rocm:0")])
def test_its_containers_read_what_pdmesh_compose_would_give_them(folder: str, device: str) -> None:
    assert load_mesh(ROOT / "deploy" / folder / "mesh.yaml", {}, {}) == written(device).mesh


@pytest.mark.parametrize("kind", ["cuda", "rocm"])
def test_an_override_adds_the_devices_that_pdmesh_compose_would(kind: str) -> None:
    override = by_hand(f"compose.{kind}.yaml")["services"]
    theirs = without_variables(yaml.safe_dump(written(f"{kind}:0").files[0].document))["services"]
    plain = by_hand("compose.yaml")["services"]
    mount = {"type": "bind", "source": f"./deploy/mesh.{kind}", "target": "/etc/pdmesh", "read_only": True}
    assert set(override) == {"keys", "model", "gateway", "p0", "d0"}
    assert all(service["volumes"] == [mount] for service in override.values()), "all read the same mesh.yaml"
    for name in ("p0", "d0"):
        environment = plain[name]["environment"] | override[name].get("environment", {})
        merged = plain[name] | override[name] | {"environment": environment, "volumes": []}
        assert comparable(merged) == comparable(theirs[name] | {"volumes": []}), name


def test_pdmesh_compose_does_not_write_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = (ROOT / "compose.yaml").read_text()
    Path("compose.yaml").write_text(kept)
    Path("mesh.yaml").write_text("")
    with pytest.raises(ConfigError, match="was not written by `pdmesh compose`"):
        run_compose(ComposeFlags(Path("mesh.yaml")), {})
    assert Path("compose.yaml").read_text() == kept


def test_a_dashboard_asks_for_metrics_that_there_are() -> None:
    families = Metrics().registry.collect()
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    known = {f"{family.name}{suffix}" for family in families for suffix in suffixes[family.type]}
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"pdmesh_\w+", query)}
    assert len(asked) > 15
    assert asked - known == set()


def test_the_dashboard_its_data_and_the_gateway_find_each_other() -> None:
    grafana = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((grafana / "datasources" / "prometheus.yaml").read_text())["datasources"]
    board = json.loads(DASHBOARD.read_text())
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    services = by_hand("compose.yaml")["services"]
    (folder,) = yaml.safe_load((grafana / "dashboards" / "pdmesh.yaml").read_text())["providers"]
    shown = {mount["target"]: mount["source"] for mount in services["grafana"]["volumes"]}
    assert ROOT / shown[folder["options"]["path"]] == DASHBOARD.parent
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == (
        f"{folder['options']['path']}/{DASHBOARD.name}"
    )
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape[0]["static_configs"][0]["targets"] == ["gateway:8000"]
    for name in METRICS:
        assert set(services[name]["networks"]) <= set(services["gateway"]["networks"])
        mounts = [mount["source"] for mount in services[name]["volumes"] if mount["type"] == "bind"]
        assert all((ROOT / mount).exists() for mount in mounts)
