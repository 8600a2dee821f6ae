"""`pdmesh up`: a local mesh for a person at a terminal."""

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from rich.console import Console
from rich.status import Status

from common.clock import SystemClock
from common.config.addresses import format_host_port, parse_http
from common.config.load import Source, check_mesh, load_mesh_with_sources
from common.config.types import MeshConfig
from common.errors import PdmeshError
from common.logs import configure_logs
from common.tasks import TaskScope
from services.cli.outcome import ExitCode, report
from services.launch.local import LaunchOptions, LocalMesh
from services.launch.settle import with_counts


class UpFlags(msgspec.Struct, frozen=True):
    """The flags of `pdmesh up`; None is not given."""

    config: Path | None = None
    port: int | None = None
    model: str | None = None
    dtype: str | None = None
    prefill: int | None = None
    decode: int | None = None


def run_up(flags: UpFlags, environ: Mapping[str, str]) -> ExitCode:
    """Run a local mesh until SIGINT (INTERRUPTED), or SIGTERM or SIGHUP (DONE)."""
    config = config_for(flags, environ)
    configure_logs("up", config.log_level, sys.stderr)
    return asyncio.run(_run(config, environ))


def config_for(flags: UpFlags, environ: Mapping[str, str]) -> MeshConfig:
    """The configuration of the mesh to start. Raises ConfigError.

    Where nobody says otherwise, workers join at a free port, since they are told it, and `--prefill 0` is split 0.
    """
    given = {"model": flags.model, "dtype": flags.dtype}
    overrides = {key: value for key, value in given.items() if value is not None}
    loaded = load_mesh_with_sources(flags.config, environ, overrides)
    config = with_counts(loaded.config, flags.prefill, flags.decode)
    gateway = config.gateway
    if flags.port is not None:
        host, _ = parse_http(gateway.http)
        gateway = msgspec.structs.replace(gateway, http=format_host_port(host, flags.port))
    if loaded.source("gateway.control") is Source.DEFAULT:
        gateway = msgspec.structs.replace(gateway, control="tcp://127.0.0.1:0")
    split = 0 if flags.prefill == 0 and loaded.source("split") is Source.DEFAULT else config.split
    return check_mesh(msgspec.structs.replace(config, gateway=gateway, split=split))


def curl_line(url: str, model: str) -> str:
    """A command that a person can paste to see the mesh answer."""
    question = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 32,
        "temperature": 0,
    }
    body = shlex.quote(json.dumps(question))
    return f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d {body}"


class _Screen:
    """What the person sees on stderr: the processes' lines, and what the start waits for.

    A terminal that has been closed takes no more; nobody is there to be told, and the mesh must still end in order.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._status: Status | None = None

    def line(self, name: str, line: str) -> None:
        """A line that a process wrote."""
        self._print(f"{name:>8} | {line}")

    def waits_for(self, text: str) -> None:
        """What the start waits for now."""
        if not self._console.is_terminal:
            self._print(f"starting: {text}")
        elif text.startswith("preparing"):
            self._print(text)  # it shows its own progress below
        elif self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def close(self) -> None:
        """Nothing is waited for any more."""
        if self._status is not None:
            status, self._status = self._status, None
            with suppress(OSError):
                status.stop()

    def _print(self, text: str) -> None:
        with suppress(OSError):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Interrupts:
    """SIGINT, SIGTERM and SIGHUP as a value to wait for. The second one hurries."""

    def __init__(self) -> None:
        self.first: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
        self.mesh: LocalMesh | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: to go on without a terminal was asked for
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: signal.Signals) -> None:
        if not self.first.done():
            self.first.set_result(number)
        elif self.mesh is not None:
            self.mesh.hurry()


async def _run(config: MeshConfig, environ: Mapping[str, str]) -> ExitCode:
    interrupts = _Interrupts()
    screen = _Screen()
    options = LaunchOptions(on_line=screen.line, on_progress=screen.waits_for)
    interrupts.mesh = LocalMesh(config, environ=environ, clock=SystemClock(), options=options)
    scope = TaskScope("up")
    serving = scope.start(_serve(interrupts.mesh, screen), "serve")
    try:
        await asyncio.wait([serving, interrupts.first], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            return report(serving.result())
    finally:
        screen.close()
        await scope.close()
    return ExitCode.INTERRUPTED if interrupts.first.result() is signal.SIGINT else ExitCode.DONE


async def _serve(mesh: LocalMesh, screen: _Screen) -> PdmeshError:
    """Serve until cancelled; returns only the error for which the mesh could not start."""
    try:
        async with mesh:
            screen.close()
            print(f"try: {curl_line(mesh.url, mesh.config.model)}", file=sys.stderr, flush=True)
            print(f"ready {mesh.url}", flush=True)
            await asyncio.Event().wait()
    except PdmeshError as error:
        return error
    raise AssertionError("unreachable: waiting on an event that nobody sets")
