"""Every command shows examples, and each of them can be typed."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from services.cli.examples import EXAMPLES
from services.cli.main import app

ROOT = typer.main.get_command(app)
LINES = [(name, line) for name, lines in EXAMPLES.items() for line in lines]


def commands(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


def test_every_command_has_examples() -> None:
    assert isinstance(ROOT, TyperGroup)
    assert sorted(commands(ROOT)) == sorted(EXAMPLES)


@pytest.mark.parametrize(("name", "line"), LINES)
def test_an_example_is_read_by_its_command(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    for file in (tmp_path / word for word in words if word.endswith(".yaml")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert program == "pdmesh"
    assert " ".join(words).startswith(name)
    command = ROOT
    while isinstance(command, TyperGroup):
        command = command.commands[words.pop(0)]
    read = command.make_context(name, words)
    assert read.params


@pytest.mark.parametrize("name", ["drain", "bench serve"])
def test_they_stand_in_the_help(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"}).output
    assert all(f"$ {line}" in shown for line in EXAMPLES[name])


def test_the_help_says_what_exit_codes_mean() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "2 wrong usage or configuration" in shown


def test_a_shell_is_told_how_to_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(
        app,
        [],
        prog_name="pdmesh",
        env={"_PDMESH_COMPLETE": "complete_bash", "COMP_WORDS": "pdmesh st", "COMP_CWORD": "1"},
    )
    assert "status" in done.output.split()


def test_watching_is_not_for_programs() -> None:
    assert CliRunner().invoke(app, ["status", "--watch", "--json"]).exit_code == 2
