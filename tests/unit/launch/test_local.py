"""Real processes without a model: started, watched, restarted, and gone afterwards."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from common.clock import SystemClock
from common.config.addresses import parse_http
from common.config.types import GatewayConfig, MeshConfig
from common.errors import ConfigError
from services.launch.errors import LaunchError
from services.launch.local import LaunchOptions, LocalMesh

FAKE = (sys.executable, "-m", "tests.unit.launch.fake_process")
CONFIG = MeshConfig(gateway=GatewayConfig(http="127.0.0.1:0", control="tcp://127.0.0.1:0"))


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    """Whatever a test does, no process stays."""
    yield
    left = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in (process.info["cmdline"] or [])]
    assert left == []


def local_mesh(folder: Path, faults: str = "", **options) -> LocalMesh:
    environ = {**os.environ, "FAKE_FAULTS": faults, "PDMESH_MODEL": "overridden-by-the-file"}
    return LocalMesh(
        CONFIG,
        environ=environ,
        clock=SystemClock(),
        options=LaunchOptions(program=FAKE, model_folder=folder, ready_timeout_s=30.0, **options),
    )


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - other processes set no event
        await asyncio.sleep(0.01)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def pid_or_none(mesh: LocalMesh, name: str) -> int | None:
    try:
        return mesh.pid(name)
    except LaunchError:
        return None


async def test_a_mesh_starts_serves_and_leaves_nothing(tmp_path):
    seen = []
    async with local_mesh(tmp_path, on_progress=seen.append) as mesh:
        assert mesh.names() == ("gateway", "p0", "d0")
        pids = [mesh.pid(name) for name in mesh.names()]
        assert len({os.getpgid(pid) for pid in pids}) == 3, "each in a group of its own"
        port = parse_http(mesh.config.gateway.http)[1]
        assert mesh.url == f"http://127.0.0.1:{port}"
        assert not is_free(port)
        await until(lambda: mesh.logs("d0"))
        assert mesh.logs("d0")[0] == f"threads={mesh.config.instances[1].threads} secret=None"
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert is_free(port)
    assert mesh.logs("d0")[-1] == "drained"
    assert "the gateway does not listen yet" in seen


async def test_the_gateway_ends_before_the_workers_do(tmp_path):
    order = []
    note = lambda name, line: order.append(name) if line == "drained" else None  # noqa: E731
    async with local_mesh(tmp_path, on_line=note):
        pass
    assert order[0] == "gateway"
    assert sorted(order) == ["d0", "gateway", "p0"]


@pytest.mark.parametrize("name", ["d0", "gateway"])
async def test_a_killed_process_comes_back(tmp_path, name):
    async with local_mesh(tmp_path) as mesh:
        first = mesh.pid(name)
        mesh.kill(name)
        await until(lambda: pid_or_none(mesh, name) not in (None, first))
        await mesh.wait_ready(30.0)
        assert not psutil.pid_exists(first)


async def test_a_process_that_ends_before_the_mesh_is_ready_is_an_error_with_its_last_words(tmp_path):
    with pytest.raises(LaunchError, match=r"'d0' ended with code 3[\s\S]*about to fail"):
        async with local_mesh(tmp_path, "d0=exit:3"):
            pass


async def test_a_configuration_that_a_process_refuses_is_an_error_of_the_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"'d0' ended with code 2[\s\S]*about to fail"):
        async with local_mesh(tmp_path, "d0=exit:2"):
            pass


async def test_a_program_that_is_not_there_is_an_error(tmp_path):
    mesh = LocalMesh(
        CONFIG,
        environ=os.environ,
        clock=SystemClock(),
        options=LaunchOptions(program=("/no/such/program",), model_folder=tmp_path, ready_timeout_s=30.0),
    )
    with pytest.raises(LaunchError, match="cannot start 'gateway'"):
        async with mesh:
            pass


async def test_a_mesh_that_never_gets_ready_says_what_it_waited_for(tmp_path):
    mesh = local_mesh(tmp_path)
    async with mesh:
        (tmp_path / "p0").unlink()
        with pytest.raises(LaunchError, match=r"not ready within 0\.2 s: waiting for p0"):
            await mesh.wait_ready(0.2)


async def test_a_process_that_does_not_obey_is_killed_after_its_grace(tmp_path):
    async with local_mesh(tmp_path, "p0=deaf", worker_grace_s=0.2) as mesh:
        pid = mesh.pid("p0")
    assert not psutil.pid_exists(pid)
    assert "drained" in mesh.logs("d0")


async def test_in_a_hurry_nobody_waits_for_the_grace(tmp_path):
    async with local_mesh(tmp_path, "p0=deaf", worker_grace_s=1000.0) as mesh:
        mesh.hurry()


async def test_a_stopped_process_is_woken_to_drain(tmp_path):
    async with local_mesh(tmp_path, worker_grace_s=1000.0) as mesh:
        mesh.kill("d0", signal.SIGSTOP)
    assert mesh.logs("d0")[-1] == "drained"


async def test_what_a_process_leaves_in_its_group_goes_with_it(tmp_path):
    async with local_mesh(tmp_path, "d0=child"):
        grandchild = int((tmp_path / "grandchild").read_text())
    await until(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


async def test_an_endless_line_neither_blocks_nor_is_lost(tmp_path):
    async with local_mesh(tmp_path, "d0=chatty") as mesh:
        pass
    assert sum(len(line) for line in mesh.logs("d0") if set(line) == {"x"}) == 200_000


async def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        config = MeshConfig(gateway=GatewayConfig(http=taken))
        options = LaunchOptions(program=FAKE, model_folder=tmp_path)
        mesh = LocalMesh(config, environ=os.environ, clock=SystemClock(), options=options)
        with pytest.raises(LaunchError, match=f"cannot listen at {taken}"):
            async with mesh:
                pass


async def test_a_question_about_nobody_names_who_is_there(tmp_path):
    async with local_mesh(tmp_path) as mesh:
        with pytest.raises(LaunchError, match="no process 'd9' in this mesh; it has gateway, p0, d0"):
            mesh.pid("d9")


async def test_nothing_is_left_of_a_mesh_whose_launcher_is_killed(tmp_path):
    (temporary := tmp_path / "temporary").mkdir()
    code = f"""
import asyncio, os
from pathlib import Path
from tests.unit.launch.test_local import local_mesh
async def main():
    async with local_mesh(Path({str(tmp_path)!r})) as mesh:
        print(*[mesh.pid(name) for name in mesh.names()], flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    environ = {**os.environ, "TMPDIR": str(temporary)}
    command = (sys.executable, "-c", code)
    launcher = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environ)
    pids = [int(pid) for pid in (await launcher.stdout.readline()).split()]
    assert len(pids) == 3
    launcher.kill()
    await launcher.wait()
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert list(temporary.iterdir()) == []
