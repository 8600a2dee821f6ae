"""A mesh of processes on this machine: started together, watched, restarted, stopped together."""

import asyncio
import logging
import signal
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psutil
import yaml

from common.clock import Clock
from common.config.addresses import format_host_port, parse_http
from common.config.load import check_mesh
from common.config.types import MeshConfig
from common.errors import ConfigError, PdmeshError
from common.hardware import usable_core_count
from common.tasks import TaskScope
from services.launch import restart
from services.launch.commands import BAD_CONFIGURATION, GATEWAY, PROGRAM, ProcessPlan, plan_processes
from services.launch.errors import LaunchError
from services.launch.lifeline import Lifeline
from services.launch.model import prepare_model
from services.launch.process import ProcessGroup, ended
from services.launch.readiness import missing_reason, not_ready_reason
from services.launch.settle import check_memory, find_port, settle

_log = logging.getLogger(__name__)

_KEPT_LINES = 2000
_ASK_EVERY_S = 0.05
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class LaunchOptions(msgspec.Struct, frozen=True):
    """How local processes are run."""

    program: tuple[str, ...] = PROGRAM
    """What runs a process; the role and its options are appended."""
    model_folder: Path | None = None
    """The prepared model; None prepares the configured one first."""
    ready_timeout_s: float = 600.0
    gateway_grace_s: float = 25.0
    """How long the gateway may take to finish its requests once asked to end."""
    worker_grace_s: float = 10.0
    on_line: Callable[[str, str], None] = lambda _name, _line: None
    """Gets (process name, line) for every line that a process writes."""
    on_progress: Callable[[str], None] = lambda _text: None
    """Gets what the start waits for, whenever that changes."""


class LocalMesh:
    """The processes of one mesh. `async with` starts them, waits until they serve, and leaves nothing behind.

    Ports that are 0 and threads that are null are decided here.  Until the mesh has been ready once, a process that
    ends is a LaunchError, or a ConfigError where that was its reason; from then on it is started again, after a pause
    that grows with each crash in a row.
    """

    def __init__(
        self, config: MeshConfig, *, environ: Mapping[str, str], clock: Clock, options: LaunchOptions | None = None
    ) -> None:
        self.config = check_mesh(config)
        self._environ = environ
        self._clock = clock
        self._options = options or LaunchOptions()
        self._scope = TaskScope("launch")
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        self._groups: dict[str, ProcessGroup] = {}
        self._lines: dict[str, deque[str]] = {}
        self._held = ExitStack()
        self._hurry = asyncio.Event()
        self._has_been_ready = False
        self._failure: PdmeshError | None = None

    async def __aenter__(self) -> "LocalMesh":
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where the mesh serves, such as http://127.0.0.1:8000."""
        host, port = parse_http(self.config.gateway.http)
        return f"http://{format_host_port(_ANY_HOST.get(host, host), port)}"

    def names(self) -> tuple[str, ...]:
        """The processes: "gateway", then the instances."""
        return tuple(self._lines)

    def pid(self, name: str) -> int:
        """The process id of `name` as it runs now. Raises LaunchError when it does not."""
        return self._running(name).pid

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process `name`. Raises LaunchError when it does not run."""
        self._running(name).signal(number)

    def logs(self, name: str) -> tuple[str, ...]:
        """The last lines that `name` has written, restarts included."""
        return tuple(self._lines[self._known(name)])

    def hurry(self) -> None:
        """Let `stop` kill at once what has not drained yet."""
        self._hurry.set()

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when /ready answers 200. Raises LaunchError after `timeout_s`; where a process failed to start, what
        the class says.
        """
        host, port = parse_http(self.config.gateway.http)
        await self._wait(lambda: not_ready_reason(_ANY_HOST.get(host, host), port), timeout_s)

    async def _wait_joined(self, timeout_s: float) -> None:
        """Return when every instance is a member; raises as `wait_ready`."""
        host, port = parse_http(self.config.gateway.http)
        names = [instance.id for instance in self.config.instances]
        await self._wait(lambda: missing_reason(_ANY_HOST.get(host, host), port, names), timeout_s)

    async def _wait(self, ask: Callable[[], Awaitable[str | None]], timeout_s: float) -> None:
        """Until `ask` has no reason against it any more."""
        end_s = self._clock.now() + timeout_s
        told = ""
        while (reason := await ask()) is not None:
            if self._failure is not None:
                raise self._failure
            if self._clock.now() > end_s:
                raise LaunchError(f"the mesh was not ready within {timeout_s} s: {reason}")
            if reason != told:
                self._options.on_progress(told := reason)
            await asyncio.sleep(_ASK_EVERY_S)

    async def stop(self) -> None:
        """End every process, the gateway first so that it can finish its requests. Idempotent."""
        if GATEWAY in self._supervisors:
            await _end(self._supervisors[GATEWAY])
        await asyncio.gather(*(_end(task) for task in self._supervisors.values()))
        self._held.close()

    async def _start(self) -> None:
        options = self._options
        check_memory(self.config, psutil.virtual_memory().total)
        self.config = settle(self.config, usable_core_count(), find_port)
        folder = options.model_folder
        if folder is None:
            options.on_progress(f"preparing the model {self.config.model!r}")
            folder = await prepare_model(self.config.model, self._environ)
        lifeline = Lifeline()
        self._held.callback(lifeline.close)
        config_fd = self._write_config()
        for plan in plan_processes(
            self.config,
            program=options.program,
            config_file=Path(f"/dev/fd/{config_fd}"),
            model_folder=folder,
            parent_fd=lifeline.child_fd,
            environ=self._environ,
        ):
            self._lines[plan.name] = deque(maxlen=_KEPT_LINES)
            work = self._supervise(plan, (lifeline.child_fd, config_fd))
            self._supervisors[plan.name] = self._scope.start(work, plan.name)
        await self.wait_ready(options.ready_timeout_s)
        await self._wait_joined(options.ready_timeout_s)
        self._has_been_ready = True

    def _write_config(self) -> int:
        """A file without a name, as a descriptor for the children: whatever kills this process, no file is left."""
        file = self._held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        file.write(yaml.safe_dump(msgspec.to_builtins(self.config), sort_keys=False).encode())
        file.flush()
        return file.fileno()

    async def _supervise(self, plan: ProcessPlan, keep_fds: tuple[int, ...]) -> None:
        crashes = 0
        while True:
            started_s = self._clock.now()
            try:
                code = await self._run_once(plan, keep_fds)
            except OSError as error:
                self._fail(LaunchError(f"cannot start {plan.name!r} with {plan.arguments!r}: {error}"))
                return
            if not self._has_been_ready:
                kind = ConfigError if code == BAD_CONFIGURATION else LaunchError
                self._fail(kind(self._epitaph(plan.name, code)))
                return
            crashes = restart.crashes_in_a_row(crashes, self._clock.now() - started_s)
            pause_s = restart.pause_s(crashes)
            _log.warning("%s %s; it starts again in %.1f s", plan.name, ended(code), pause_s)
            await asyncio.sleep(pause_s)

    async def _run_once(self, plan: ProcessPlan, keep_fds: tuple[int, ...]) -> int:
        group = await ProcessGroup.start(plan, keep_fds, lambda line: self._line(plan.name, line))
        self._groups[plan.name] = group
        try:
            return await group.wait()
        finally:
            grace_s = self._options.gateway_grace_s if plan.name == GATEWAY else self._options.worker_grace_s
            await group.stop(grace_s, self._hurry)
            del self._groups[plan.name]

    def _fail(self, failure: PdmeshError) -> None:
        """Keep the first failure: the others tend to follow from it."""
        self._failure = self._failure or failure

    def _line(self, name: str, line: str) -> None:
        self._lines[name].append(line)
        self._options.on_line(name, line)

    def _epitaph(self, name: str, code: int) -> str:
        tail = "\n".join(f"  {line}" for line in [*self._lines[name]][-15:]) or "  (none)"
        return f"the process {name!r} {ended(code)} before the mesh was ready; its last lines:\n{tail}"

    def _known(self, name: str) -> str:
        if name not in self._lines:
            raise LaunchError(f"no process {name!r} in this mesh; it has {', '.join(self._lines) or 'none'}")
        return name

    def _running(self, name: str) -> ProcessGroup:
        group = self._groups.get(self._known(name))
        if group is None or not group.is_running:
            raise LaunchError(f"the process {name!r} does not run at the moment; wait_ready() tells when it does")
        return group


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
