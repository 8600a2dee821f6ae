"""Flags of `pdmesh bench` that do not go together."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError
from services.cli.bench.commands import bench_app


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(bench_app, arguments)
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


@pytest.fixture
def mesh(tmp_path: Path) -> str:
    file = tmp_path / "mesh.yaml"
    file.write_text("model: tiny\n")
    return str(file)


def test_one_kind_of_measurement_at_a_time(tmp_path: Path) -> None:
    out = str(tmp_path / "out.json")
    assert "give one of --simulated, --ablations, --real and --costs" in refused("policies", "--json", out)
    assert "give one of --simulated and --real" in refused("scheduler", "--json", out, "--simulated", "--real")


def test_what_a_mesh_says_itself_is_not_said_twice(mesh: str, tmp_path: Path) -> None:
    command = ("policies", "--json", str(tmp_path / "out.json"))
    assert "--slowdown: with --mesh its file says that" in refused(
        *command, "--real", "--mesh", mesh, "--slowdown", "2"
    )
    assert "--mesh with --costs" in refused(*command, "--costs", "--mesh", mesh)
    said = refused(*command, "--real", "--trace", "synthetic", "--recorded")
    assert "--trace, --recorded: only for meshes" in said
    twice = refused(*command, "--real", "--mesh", mesh, "--rate", "2", "--all-at-once")
    assert "--rate and --all-at-once say each when requests come" in twice


def test_a_comparison_over_round_robin_needs_it(tmp_path: Path) -> None:
    out = str(tmp_path / "out.json")
    assert "without round_robin" in refused("scheduler", "--json", out, "--real", "--policy", "dp,jsq")
