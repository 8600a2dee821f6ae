"""The command as a process: exit codes, streams, and what it imports."""

import os
import socket
import subprocess
import sys

import pytest

from services.engine.twin.deterministic_model import write_deterministic_model

PDMESH = [sys.executable, "-m", "services.cli.main"]


def run(*arguments, **environ):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PDMESH_")}
    return subprocess.run(
        [*PDMESH, *arguments], capture_output=True, text=True, env={**clean, "COLUMNS": "200", **environ}, timeout=60
    )


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in ("up", "gateway", "prefill", "decode", "model", "config"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("up", "--port", "99999"), ("up", "--decode", "0"), ("up", "--nonsense"), ("config",)]
)
def test_bad_usage_is_2(arguments):
    assert run(*arguments).returncode == 2


def test_config_check_says_ok_on_stdout(tmp_path):
    file = tmp_path / "mesh.yaml"
    file.write_text("model: org/tiny\nsplit: 0\ninstances: [{id: d7, role: decode}]\n")
    done = run("config", "check", "--config", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "ok: model org/tiny, dtype float32, split 0, instances d7 (decode)"


@pytest.mark.parametrize("command", [("config", "check"), ("up",), ("gateway",), ("decode",)])
def test_bad_configuration_is_2_and_explained_on_stderr(command, tmp_path):
    file = tmp_path / "mesh.yaml"
    file.write_text("gatway: {}\n")
    done = run(*command, "--config", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'gateway'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_variable_is_2():
    done = run("config", "check", PDMESH_MODLE="x")
    assert done.returncode == 2
    assert "PDMESH_MODLE" in done.stderr


def test_an_instance_that_is_not_in_the_file_is_2():
    done = run("decode", "--instance", "d9")
    assert done.returncode == 2
    assert "'d9' is not in the configuration, which has d0" in done.stderr


def test_a_model_that_is_not_there_is_1_and_names_it(tmp_path):
    done = run("model", "fetch", str(tmp_path / "none.gguf"), PDMESH_CACHE=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "none.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gateway_whose_port_is_taken_says_so(tmp_path):
    folder = write_deterministic_model(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        http = f"127.0.0.1:{holder.getsockname()[1]}"
        done = run(
            "gateway",
            "--model-folder",
            str(folder),
            PDMESH_GATEWAY__HTTP=http,
            PDMESH_GATEWAY__CONTROL="tcp://127.0.0.1:0",
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: cannot listen at {http}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_itself_loads_nothing_heavy():
    code = "import sys, services.cli.main, services.cli.up, services.cli.roles;"
    code += "print([m for m in ('torch', 'transformers', 'numpy', 'aiohttp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
