"""`pdmesh compose` as it writes: which files, what it refuses, what it leaves alone."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.load import load_mesh
from common.errors import ConfigError
from services.cli.compose import ComposeFlags, run_compose
from services.cli.outcome import ExitCode

TWO_HOSTS = """
gateway: {control_keys: keys}
transfer: {trusted_network: true}
instances:
  - {id: p0, role: prefill, host: big, device: "cuda:1"}
  - {id: d0, role: decode, host: small}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mesh_file(text: str = "") -> Path:
    path = Path("mesh.yaml")
    path.write_text(text)
    return path


def composed(text: str = "", **flags: Any) -> dict[str, dict[str, Any]]:
    """The services in each compose file that was written."""
    assert run_compose(ComposeFlags(mesh_file(text), **flags), {}) is ExitCode.DONE
    return {path.name: yaml.safe_load(path.read_text())["services"] for path in sorted(Path().glob("*compose*.yaml"))}


def test_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(composed()) == ["compose.yaml"]
    assert capsys.readouterr().out == "compose.yaml\n"
    mesh = load_mesh(Path("compose.mesh/mesh.yaml"), {}, {})
    assert mesh.gateway.control == "tcp://0.0.0.0:5700"
    assert mesh.transfer.shm_folder == "/run/pdmesh"


def test_elsewhere_under_another_name() -> None:
    Path("out").mkdir()
    composed(out=Path("out/mine.yml"))
    services = yaml.safe_load(Path("out/mine.yml").read_text())["services"]
    assert services["gateway"]["volumes"][0]["source"] == "./mine.mesh"
    assert Path("out/mine.mesh/mesh.yaml").is_file()


def test_a_file_for_each_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = composed(TWO_HOSTS)
    assert {name: list(services) for name, services in found.items()} == {
        "compose.big.yaml": ["model", "gateway", "p0"],
        "compose.small.yaml": ["model", "d0"],
    }
    assert capsys.readouterr().out == "compose.big.yaml\ncompose.small.yaml\n"


def test_one_machines_part() -> None:
    found = composed(TWO_HOSTS, host="small")
    assert {name: list(services) for name, services in found.items()} == {"compose.yaml": ["model", "d0"]}


@pytest.mark.parametrize(
    ("text", "host", "words"),
    [(TWO_HOSTS, "smal", "did you mean 'small'"), (TWO_HOSTS, "x", "big, small"), ("", "small", "drop --host")],
)
def test_a_machine_that_is_not_there(text: str, host: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        composed(text, host=host)
    assert not list(Path().glob("compose*"))


def test_images() -> None:
    services = composed(TWO_HOSTS, image="own:1", image_cuda="own:gpu")
    assert services["compose.big.yaml"]["gateway"]["image"] == "own:1"
    assert services["compose.big.yaml"]["p0"]["image"] == "own:gpu"


def test_a_users_own_file_is_not_overwritten() -> None:
    Path("compose.yaml").write_text("services: {}\n")
    with pytest.raises(ConfigError, match=r"'compose\.yaml' is there.*another file with -o"):
        composed()
    assert Path("compose.yaml").read_text() == "services: {}\n"
    assert not Path("compose.mesh").exists()


def test_what_it_wrote_itself_is() -> None:
    composed()
    assert "d1" not in composed()["compose.yaml"]
    more = "instances: [{id: p0, role: prefill}, {id: d0, role: decode}, {id: d1, role: decode}]"
    assert "d1" in composed(more)["compose.yaml"]


def test_the_copy_is_not_taken_for_the_original() -> None:
    composed()
    with pytest.raises(ConfigError, match=r"the mesh\.yaml that it was made from"):
        run_compose(ComposeFlags(Path("compose.mesh/mesh.yaml")), {})


def test_profiles_are_copied_and_all_can_be_read_by_another_user() -> None:
    Path("p").mkdir()
    Path("p/slow.json").write_text("{}")
    Path("p/slow.json").chmod(0o600)
    before = os.umask(0o077)
    try:
        composed("instances: [{id: p0, role: prefill}, {id: d0, role: decode, profile: p/slow.json}]")
    finally:
        os.umask(before)
    assert Path("compose.mesh/profiles/d0.json").read_text() == "{}"
    for path in (Path("compose.mesh"), *Path("compose.mesh").rglob("*")):
        readable = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
        assert path.stat().st_mode & readable == readable, path


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"the profile 'no\.json' cannot be copied"):
        composed("instances: [{id: p0, role: prefill}, {id: d0, role: decode, profile: no.json}]")


def test_a_folder_that_is_not_there() -> None:
    Path("file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*give another -o"):
        composed(out=Path("file/compose.yaml"))


@pytest.mark.parametrize("name", ["models/tiny", "./models/tiny"])
def test_a_model_of_this_machine(name: str) -> None:
    Path("models/tiny").mkdir(parents=True)
    services = composed(f"model: {name}")["compose.yaml"]
    path = str(Path("models/tiny").absolute())
    assert path in [mount["source"] for mount in services["d0"]["volumes"]]
    assert load_mesh(Path("compose.mesh/mesh.yaml"), {}, {}).model == path


def test_a_built_in_name_is_no_folder() -> None:
    Path("smollm2").mkdir()
    assert load_mesh(mesh_file(), {}, {}).model == "smollm2"
    assert "model" in composed()["compose.yaml"]


def test_certificates_are_found_from_anywhere() -> None:
    composed("transfer: {tls: {certificate: c.pem, key: /k.pem, authority: a.pem}}")
    services = yaml.safe_load(Path("compose.yaml").read_text())["services"]
    sources = [mount["source"] for mount in services["p0"]["volumes"]]
    assert sources[-3:] == [str(Path("c.pem").absolute()), "/k.pem", str(Path("a.pem").absolute())]


def test_keys_are_found_from_anywhere() -> None:
    services = composed(TWO_HOSTS)["compose.small.yaml"]
    assert str(Path("keys/d0").absolute()) in [mount["source"] for mount in services["d0"]["volumes"]]


def test_variables_are_part_of_the_mesh() -> None:
    run_compose(ComposeFlags(mesh_file()), {"PDMESH_GATEWAY__QUEUE": "9"})
    assert load_mesh(Path("compose.mesh/mesh.yaml"), {}, {}).gateway.queue == 9


def test_instances_that_span_devices_cannot_be_run_yet() -> None:
    with pytest.raises(ConfigError, match="needs ranks"):
        composed("instances: [{id: p0, role: prefill}, {id: d0, role: decode, device: cuda, tp: 2}]")
