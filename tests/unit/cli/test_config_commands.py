"""`pdmesh config show`, `pdmesh model list`, and the reference that both the command and the docs are made of."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.config.reference import key_entries
from common.config.types import MeshConfig
from common.errors import ConfigError
from common.model_store import FORMAT, MARKER
from services.cli.config_show import reference_rows
from services.cli.main import app

RUN = CliRunner()
REFERENCE = Path(__file__).parents[3] / "docs" / "configuration.md"


def run(*words: str, **environ: str) -> str:
    result = RUN.invoke(app, list(words), env=environ)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_key_has_a_type_and_most_a_meaning() -> None:
    entries = {entry.path: entry for entry in key_entries(MeshConfig)}
    assert entries["gateway.queue"].default == "256"
    assert entries["instances[].block_size"].allowed == "an integer ≥ 1 ≤ 1024"
    assert entries["instances[].id"].default == "required"
    assert entries["instances[].emulate.slowdown"].meaning.startswith("Each step is stretched")
    assert "instances[]" in entries
    assert all(entry.allowed for entry in entries.values())


def test_the_reference_in_the_docs_is_of_these_types() -> None:
    """Made anew by: python -m services.cli.config_show"""
    table = "\n".join(reference_rows(list(key_entries(MeshConfig))))
    assert table in REFERENCE.read_text(), "docs/configuration.md is not of these types: run what this test says"


def test_show_says_who_decided(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text("split: 0\ninstances: [{id: d0, role: decode, block_size: 32}]\n")
    shown = json.loads(run("config", "show", "--config", str(file), "--json", PDMESH_GATEWAY__QUEUE="7"))
    told = {one["key"]: (one["value"], one["source"]) for one in shown}
    assert told["split"] == ("0", "file")
    assert told["gateway.queue"] == ("7", "env")
    assert told["instances[0].block_size"] == ("32", "file")
    assert "model" not in told
    every = json.loads(run("config", "show", "--config", str(file), "--json", "--all"))
    assert ("model", '"smollm2"', "default") in {(one["key"], one["value"], one["source"]) for one in every}


def test_one_key_is_explained() -> None:
    assert "instances[].budget: an integer ≥ 1; default 256" in run("config", "show", "--key", "budget")
    result = RUN.invoke(app, ["config", "show", "--key", "bugdet"])
    assert result.exit_code != 0


def test_models_of_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org--name"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps({"format": FORMAT, "source": "a hub"}))
    (tmp_path / "models" / "half").mkdir()
    models = json.loads(run("model", "list", "--json", PDMESH_CACHE=str(tmp_path)))
    assert [(model["name"], model["is_ready"]) for model in models] == [("smollm2", False), ("org--name", True)]
    assert "org--name" in run("model", "list", PDMESH_CACHE=str(tmp_path))


@pytest.mark.parametrize("command", ["status", "drain", "resume", "chat"])
def test_the_new_commands_explain_themselves(command: str) -> None:
    assert "--url" in run(command, "--help")


def test_check_names_what_is_not_here(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    here = tmp_path / "d0.json"
    here.touch()
    instances = f"[{{id: p0, role: prefill, profile: gone/p0.json}}, {{id: d0, role: decode, profile: {here}}}]"
    file.write_text(f"gateway: {{api_keys: gone/keys}}\ninstances: {instances}\n")
    told = run("config", "check", "--config", str(file), PDMESH_CACHE=str(tmp_path / "empty")).splitlines()
    assert told == [
        "ok: model smollm2, dtype float32, split full, instances p0 (prefill), d0 (decode)",
        "the model is not prepared here yet: the first start does it, or `pdmesh model fetch smollm2`",
        "not on this machine: gone/keys (gateway.api_keys)",
        "not on this machine: gone/p0.json (profile of p0)",
    ]


def test_check_refuses_a_model_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text("model: LLaMA3-8B\n")
    result = RUN.invoke(app, ["config", "check", "--config", str(file)], env={"PDMESH_CACHE": str(tmp_path)})
    assert isinstance(result.exception, ConfigError)
    assert "model 'LLaMA3-8B' is not known" in str(result.exception)
