"""`pdmesh keys init` and `pdmesh keys revoke`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.bus.keys import read_allowed
from common.config.load import load_mesh
from common.errors import ConfigError
from services.cli.main import app

RUN = CliRunner()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> str:
    result = RUN.invoke(app, ["keys", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def may_join(folder: str = "keys") -> set[str]:
    return set(read_allowed(Path(folder)).values())


def test_every_instance_of_the_mesh_gets_a_key() -> None:
    Path("mesh.yaml").write_text("split: 0\ninstances: [{id: a, role: decode}, {id: b, role: decode}]")
    assert run("init", "--config", "mesh.yaml").splitlines() == [
        f"keys/{name}: a new key" for name in ("gateway", "a", "b")
    ]
    assert may_join() == {"a", "b"}
    assert "--instance ID makes a new one" in run("init", "--config", "mesh.yaml")


def test_one_is_made_anew_and_the_others_stay() -> None:
    run("init")
    before = read_allowed(Path("keys"))
    assert run("init", "--instance", "d0") == "keys/d0: a new key\n"
    after = read_allowed(Path("keys"))
    assert set(after.values()) == {"p0", "d0"}
    assert len(set(before) & set(after)) == 1


def test_the_folder_is_that_of_the_mesh_unless_another_is_given() -> None:
    Path("mesh.yaml").write_text("gateway: {control: 'tcp://0.0.0.0:5700', control_keys: ours}")
    run("init", "--config", "mesh.yaml")
    assert may_join("ours") == {"p0", "d0"}
    run("init", "--config", "mesh.yaml", "--out", "theirs")
    assert may_join("theirs") == {"p0", "d0"}


def test_a_mesh_that_is_refused_for_want_of_keys_gets_them() -> None:
    instances = "instances: [{id: a, role: decode}]"
    Path("mesh.yaml").write_text(f"gateway: {{control: 'tcp://0.0.0.0:5700'}}\nsplit: 0\n{instances}")
    with pytest.raises(ConfigError, match="pdmesh keys init --config FILE --out keys"):
        load_mesh(Path("mesh.yaml"), {}, {})
    run("init", "--config", "mesh.yaml", "--out", "keys")
    assert may_join() == {"a"}
    run("revoke", "a", "--config", "mesh.yaml")
    assert may_join() == set()


def test_no_private_key_is_printed() -> None:
    shown = run("init") + run("init", "--instance", "d0") + run("init", "--instance", "gateway") + run("revoke", "d0")
    secrets = [path.read_text().strip() for path in Path("keys").glob("*/private.key")]
    assert len(secrets) == 3
    assert not [secret for secret in secrets if secret in shown]


def test_a_revoked_instance_may_not_join() -> None:
    run("init")
    assert "d0 may not join any more" in run("revoke", "d0")
    assert may_join() == {"p0"}


@pytest.mark.parametrize("name", ["d0", "gateway", "../gateway/allowed/p0", "d9", ""])
def test_what_cannot_be_revoked_is_an_error_and_changes_nothing(name: str) -> None:
    run("init", "--instance", "p0")
    with pytest.raises(ConfigError):
        RUN.invoke(app, ["keys", "revoke", name], catch_exceptions=False)
    assert may_join() == {"p0"}


@pytest.mark.parametrize("name", ["..", "a/b", "-", "a b"])
def test_a_key_is_made_for_names_of_instances_only(name: str, here: Path) -> None:
    with pytest.raises(ConfigError, match="--instance is"):
        RUN.invoke(app, ["keys", "init", f"--instance={name}"], catch_exceptions=False)
    assert not list(here.iterdir())
