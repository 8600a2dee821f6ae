"""One process group: started, its output passed on line by line, stopped for good."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from common.tasks import TaskScope
from services.launch.commands import ProcessPlan

_CHUNK_BYTES = 1 << 16
_LAST_OUTPUT_S = 1.0
"""How long to read on after the process has ended, where something it left behind holds its output open."""


def ended(code: int) -> str:
    """How a process ended that has this exit code, in words."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
    hint = "; where nobody did it, the system lacked memory: lower kv_memory" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


class ProcessGroup:
    """A running child in a process group of its own, with stdout and stderr going to `on_line`.

    The owner must see it end: by `wait`, or by `stop`.
    """

    def __init__(self, process: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._scope = TaskScope(f"process-{process.pid}")
        self._output = self._scope.start(self._pass_on(on_line), "output")

    @classmethod
    async def start(
        cls, plan: ProcessPlan, keep_fds: tuple[int, ...], on_line: Callable[[str], None]
    ) -> "ProcessGroup":
        """Start the process of `plan`, which inherits `keep_fds`. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *plan.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(plan.environ),
            pass_fds=keep_fds,
            start_new_session=True,
        )
        return cls(process, on_line)

    @property
    def pid(self) -> int:
        """The process id, which is the group's too."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """The exit code (minus the signal's number for a killed one), when all output has been passed on."""
        code = await self._process.wait()
        await asyncio.wait([self._output], timeout=_LAST_OUTPUT_S)
        await self._scope.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what the process may have left in its group
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the whole group, if it still runs."""
        if self.is_running:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Ask the group to end; kill it after `grace_s`, or as soon as `hurry` is set. Returns when it has ended."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a stopped process could not obey
        ended = self._scope.start(self._process.wait(), "wait")
        hurried = self._scope.start(hurry.wait(), "hurry")
        await asyncio.wait([ended, hurried], timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        self.signal(signal.SIGKILL)
        await self.wait()

    async def _pass_on(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stdout is not None, "started with a pipe"
        rest = b""
        while chunk := await self._process.stdout.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                on_line(line.decode(errors="replace").rstrip("\r"))
            if len(rest) > _CHUNK_BYTES:
                on_line(rest.decode(errors="replace"))
                rest = b""
        if rest:
            on_line(rest.decode(errors="replace"))
