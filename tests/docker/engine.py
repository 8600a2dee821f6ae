"""A container engine for tests: the one that is there, or one of their own that leaves nothing behind."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_START_S = 60.0
_TOOLS = ("dockerd", "docker", "iptables-save", "iptables-restore")


class NoEngine(Exception):
    """Why there is no engine to be had."""


class Engine:
    """Docker and compose commands against one engine."""

    def __init__(self, docker: str, compose: tuple[str, ...], environ: Mapping[str, str], *, is_own: bool) -> None:
        self._docker = docker
        self._compose = compose
        self._environ = environ
        self.is_own = is_own

    def docker(self, *arguments: str, timeout_s: float = 60.0, feed: Path | None = None) -> str:
        """What `docker arguments` prints; its words go into the error when it fails."""
        return _run((self._docker, *arguments), self._environ, timeout_s, feed)

    def compose(
        self,
        files: Sequence[Path],
        variables: Mapping[str, str],
        project: str,
        *arguments: str,
        timeout_s: float = 120.0,
    ) -> str:
        """As `docker`, with compose: `files` one over the other, and what they read of the environment."""
        flags = [word for file in files for word in ("-f", str(file))]
        command = (*self._compose, *flags, "-p", project, *arguments)
        return _run(command, {**self._environ, **variables}, timeout_s)


def compose_command() -> tuple[str, ...]:
    """The command of compose. Raises NoEngine."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) and subprocess.run((*command, "version"), capture_output=True).returncode == 0:
            return command
    raise NoEngine("neither `docker compose` nor docker-compose is installed")


@contextmanager
def some_engine() -> Iterator[Engine]:
    """The engine that the environment names, else one started for this. Raises NoEngine."""
    environ = dict(os.environ)
    if shutil.which("docker") and _answers("docker", environ):
        yield Engine("docker", compose_command(), environ, is_own=False)
        return
    if os.geteuid() != 0:
        raise NoEngine("none answers, and only root can start one")
    if missing := [name for name in _TOOLS if shutil.which(name) is None]:
        raise NoEngine(f"none answers, and {', '.join(missing)} is not installed; scripts/docker-engine does that")
    compose = compose_command()
    with _firewall_kept(), _folder() as folder, _daemon(folder, environ):
        environ["DOCKER_HOST"] = f"unix://{folder}/docker.sock"
        yield Engine("docker", compose, environ, is_own=True)


@contextmanager
def _folder() -> Iterator[Path]:
    """Of short path, for the sockets in it; unmounted and removed afterwards, whatever an engine left in it."""
    folder = Path(tempfile.mkdtemp(prefix="pdmesh-engine-"))
    try:
        yield folder
    finally:
        for mount in reversed([line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]):
            if mount.startswith(f"{folder}/"):
                subprocess.run(("umount", "--lazy", mount), check=False)
        _run(("rm", "-rf", str(folder)), os.environ, 300)  # much faster than Python, with a hundred thousand files


@contextmanager
def _daemon(folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    command = ["dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    command += ["--host", f"unix://{folder}/docker.sock", "--pidfile", str(folder / "pid")]
    command += ["--bridge", "none"]  # docker0 may be another engine's, and compose makes its own networks
    log = folder / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait_for(process, {**environ, "DOCKER_HOST": f"unix://{folder}/docker.sock"}, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(process: subprocess.Popen[bytes], environ: Mapping[str, str], log: Path) -> None:
    end_s = time.monotonic() + _START_S
    while not _answers("docker", environ):
        if process.poll() is not None or time.monotonic() > end_s:
            last = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise NoEngine(f"dockerd does not start on this machine: {last}")
        time.sleep(0.2)


@contextmanager
def _firewall_kept() -> Iterator[None]:
    """An engine leaves its chains and a policy behind. They stay where there were some, which are another engine's."""
    before = _run(("iptables-save",), os.environ, 30)
    try:
        yield
    finally:
        if "DOCKER" not in before and not any(process.name() == "dockerd" for process in psutil.process_iter()):
            subprocess.run(("iptables-restore",), input=before.encode(), check=True, timeout=30)


def _answers(docker: str, environ: Mapping[str, str]) -> bool:
    command = (docker, "version", "--format", "{{.Server.Version}}")
    return subprocess.run(command, env=dict(environ), capture_output=True, timeout=30).returncode == 0


def _run(command: tuple[str, ...], environ: Mapping[str, str], timeout_s: float, feed: Path | None = None) -> str:
    with (feed or Path(os.devnull)).open("rb") as source:
        done = subprocess.run(
            command, env=dict(environ), stdin=source, capture_output=True, text=True, timeout=timeout_s
        )
    if done.returncode != 0:
        raise AssertionError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout
