"""`pdmesh up` as a person runs it: one line on stdout, an answer, an exit code, and nothing left behind."""

import asyncio
import os
import shlex
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import psutil
import pytest
from yarl import URL

pytestmark = pytest.mark.timeout(120)

PDMESH = (sys.executable, "-m", "services.cli.main")
SHARED_MEMORY = Path("/dev/shm")


class Up:
    """A running `pdmesh up` that has said that it is ready."""

    def __init__(self, process: Process, model: Path, url: str) -> None:
        self.process = process
        self.url = url
        self._model = str(model)
        self.children = {child.cmdline()[3]: child for child in psutil.Process(process.pid).children()}
        """By role."""
        self.ports = [port for child in self.children.values() for port in ports_of(child)]

    async def stream(self, client: aiohttp.ClientSession, max_tokens: int) -> aiohttp.ClientResponse:
        """A streamed answer that has begun."""
        body = {"model": self._model, "prompt": "hi", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        response = await client.post(f"{self.url}/v1/completions", json=body)
        assert response.status == 200
        assert (await response.content.readline()).startswith(b"data: {")
        return response

    async def end(self, *signals: signal.Signals) -> tuple[int, str, str]:
        """Send the signals; (exit code, the rest of stdout, the rest of stderr)."""
        for number in signals:
            self.process.send_signal(number)
        out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()

    async def until_gone(self) -> None:
        """No process of it runs, no port of it is taken."""
        async with asyncio.timeout(30):
            while any(runs(child) for child in self.children.values()):  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.02)
        assert self.ports
        assert [port for port in self.ports if is_taken(port)] == []


def runs(process: psutil.Process) -> bool:
    """Not so for one that has ended and that nobody has waited for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ports_of(process: psutil.Process) -> list[int]:
    connections = process.net_connections("tcp")
    return [connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN]


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def files_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@asynccontextmanager
async def command(model: Path, folder: Path, *flags: str) -> AsyncIterator[Process]:
    """`pdmesh up` on free ports, its temporary files in `folder`; afterwards there are none."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PDMESH_")}
    environ |= {"TMPDIR": str(folder), "COLUMNS": "200"}
    shared = files_in(SHARED_MEMORY)
    arguments = (*PDMESH, "up", "--model", str(model), "--port", "0", *flags)
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=PIPE, env=environ)
    try:
        yield process
        assert files_in(folder) == set()
        assert [name for name in files_in(SHARED_MEMORY) - shared if "pdmesh" in name] == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def up(model: Path, folder: Path, *flags: str) -> AsyncIterator[Up]:
    """A `command` that is ready; afterwards nothing of it is left."""
    async with command(model, folder, *flags) as process:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        if not line.startswith("ready http://127.0.0.1:"):
            raise AssertionError((await process.communicate())[1].decode())
        running = Up(process, model, line.removeprefix("ready ").strip())
        yield running
        await running.until_gone()


async def follow(curl: str) -> dict[str, Any]:
    """What the server answers to the printed curl line."""
    words = shlex.split(curl)
    assert words[:2] == ["curl", "-s"]
    url, header, body = words[2], words[words.index("-H") + 1], words[words.index("-d") + 1]
    name, value = header.split(": ")
    async with aiohttp.ClientSession() as client, client.post(url, data=body, headers={name: value}) as response:
        assert response.status == 200
        return dict(await response.json())


async def test_the_line_that_it_prints_works_and_ctrl_c_leaves_nothing(
    deterministic_folder: Path, tmp_path: Path
) -> None:
    async with up(deterministic_folder, tmp_path) as running:
        assert set(running.children) == {"gateway", "prefill", "decode"}
        assert running.process.stderr is not None
        while not (line := (await running.process.stderr.readline()).decode()).startswith("try: "):
            assert line, "stderr ended without a curl line"
        answer = await follow(line.removeprefix("try: "))
        assert answer["model"] == str(deterministic_folder)
        assert answer["usage"]["completion_tokens"] > 0
        code, out, err = await running.end(signal.SIGINT)
        assert (code, out) == (130, "")
        assert [line for line in err.splitlines() if "INFO" not in line] == [], "a normal stop alarms nobody"


async def test_sigterm_lets_answers_end(deterministic_folder: Path, tmp_path: Path) -> None:
    flags = ("--prefill", "2", "--decode", "2", "--dtype", "bfloat16")
    async with up(deterministic_folder, tmp_path, *flags) as running, aiohttp.ClientSession() as client:
        # A folder as the model's name has slashes, which clients send escaped.
        url = f"{running.url}/v1/models/{quote(str(deterministic_folder), safe='')}"
        async with client.get(URL(url, encoded=True)) as model:
            assert (model.status, (await model.json())["id"]) == (200, str(deterministic_folder))
        response = await running.stream(client, max_tokens=1000)
        running.process.send_signal(signal.SIGTERM)
        events = (await response.text()).splitlines()
        assert events[-2:] == ["data: [DONE]", ""]
        assert sum('"text"' in event for event in events) > 1, "it had not ended before the signal"
        code, out, err = await running.end()
        assert (code, out) == (0, "")
        assert len(joined(err)) == 4, err
        assert "WARNING" not in err


def joined(log: str) -> set[str]:
    return {line.split(" | ")[0].strip() for line in log.splitlines() if "joined the mesh" in line}


async def test_a_second_ctrl_c_waits_for_nobody(deterministic_folder: Path, tmp_path: Path) -> None:
    async with up(deterministic_folder, tmp_path) as running, aiohttp.ClientSession() as client:
        response = await running.stream(client, max_tokens=8000)
        running.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            while await is_ready(client, running.url):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        code, _, _ = await running.end(signal.SIGINT)
        assert code == 130
        assert not await has_ended_well(response)


async def is_ready(client: aiohttp.ClientSession, url: str) -> bool:
    async with client.get(f"{url}/ready") as response:
        return response.status == 200


async def has_ended_well(response: aiohttp.ClientResponse) -> bool:
    try:
        return (await response.text()).endswith("data: [DONE]\n\n")
    except aiohttp.ClientError:
        return False


async def test_ctrl_c_during_the_start(deterministic_folder: Path, tmp_path: Path) -> None:
    async with command(deterministic_folder, tmp_path) as process:
        assert process.stderr is not None
        while b"does not listen" not in (line := await process.stderr.readline()):
            assert line
        children = psutil.Process(process.pid).children()
        assert children
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        assert (process.returncode, out) == (130, b""), err
        assert not any(runs(child) for child in children)
        assert b"Traceback" not in err


@pytest.fixture
def hang_ups() -> Iterator[None]:
    """Not ignored, even where these tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_ups")
async def test_a_closed_terminal_ends_it_a_stopped_worker_too(deterministic_folder: Path, tmp_path: Path) -> None:
    async with up(deterministic_folder, tmp_path) as running:
        running.children["decode"].suspend()
        code, _, err = await running.end(signal.SIGHUP)
        assert code == 0, err


async def test_nothing_outlives_a_launcher_that_is_killed(deterministic_folder: Path, tmp_path: Path) -> None:
    async with up(deterministic_folder, tmp_path) as running:
        running.process.kill()
        await running.process.wait()
        await running.until_gone()
        await running.process.communicate()


async def test_a_port_that_is_taken_is_told_with_the_way_out(deterministic_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        async with command(deterministic_folder, tmp_path, "--port", port) as process:
            out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert f"cannot listen at 127.0.0.1:{port}" in err.decode()
    assert "--port" in err.decode()
    assert b"Traceback" not in err
