"""`pdmesh keys api`: makes a key that is shown once, keeps its hash, takes it back."""

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.clock import ManualClock
from common.errors import ConfigError
from services.cli.client_keys import add_client_key, revoke_client_key
from services.cli.gateway_client import Gateway
from services.cli.main import app
from services.gateway.http.key_file import KeyFile

RUN = CliRunner()


def test_the_key_is_printed_alone_and_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    result = RUN.invoke(
        app, ["keys", "api", "ann", "--file", str(file)], env={"PDMESH_API_KEY": "x", "PDMESH_URL": "y"}
    )
    assert result.exit_code == 0, result.output
    key = result.stdout.strip()
    assert result.stdout == f"{key}\n"
    assert "shown this once" in result.stderr
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KeyFile(file, ManualClock()).owner_of(key) == "ann"


def test_the_file_is_that_of_the_configuration(tmp_path: Path) -> None:
    file, config = tmp_path / "keys", tmp_path / "mesh.yaml"
    config.write_text(f"gateway: {{api_keys: {file}}}\n")
    for words in (["--config", str(config)], []):
        env = {} if words else {"PDMESH_GATEWAY__API_KEYS": str(file)}
        result = RUN.invoke(app, ["keys", "api", f"ann-{len(words)}", *words], env=env)
        assert result.exit_code == 0, result.output
    assert len(file.read_text().splitlines()) == 2


def test_keys_are_added_to_what_is_there_and_taken_back_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n# no end of this line")
    file.chmod(0o640)
    keys = {name: add_client_key(file, name) for name in ("ann", "bob", "ann2")}
    revoke_client_key(file, "ann")
    held = KeyFile(file, ManualClock())
    assert [held.owner_of(key) for key in keys.values()] == [None, "bob", "ann2"]
    assert file.read_text().startswith("# ours\n# no end of this line\nbob sha256:")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_mistakes_are_told_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_client_key(file, "ann")
    before = file.read_text()
    with pytest.raises(ConfigError, match="--revoke"):
        add_client_key(file, "ann")
    with pytest.raises(ConfigError, match="'a b' is not allowed"):
        add_client_key(file, "a b")
    with pytest.raises(ConfigError, match="no key of the name 'bob'; it has ann"):
        revoke_client_key(file, "bob")
    with pytest.raises(ConfigError, match="cannot read"):
        revoke_client_key(tmp_path / "none", "ann")
    with pytest.raises(ConfigError, match="cannot write"):
        add_client_key(tmp_path / "no" / "folder", "ann")
    assert file.read_text() == before


def test_a_gateway_does_not_show_its_key_and_sends_it_as_bearer() -> None:
    at = Gateway("http://host:1/", "secret")
    assert "secret" not in repr(at)
    request = at.request("/ready")
    assert (request.full_url, request.get_header("Authorization")) == ("http://host:1/ready", "Bearer secret")
    assert Gateway("http://host:1").request("/x").get_header("Authorization") is None
