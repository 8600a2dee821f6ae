"""One stage alone: an engine in a process of its own, pinned as the mesh pins it, that serves a closed loop."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from common.config.types import InstanceConfig
from common.messages.control import Role
from services.bench.engine.errors import BenchError
from services.bench.engine.system import System
from services.bench.load.stream import LoadRequest
from services.bench.serve.cpu_time import cpu_seconds
from services.launch.commands import child_environ

_PROGRAM = (sys.executable, "-m", "services.engine.measuring.stage_trial")


class StageRun(msgspec.Struct, frozen=True):
    """One run of a stage."""

    ended_at: tuple[float, ...]
    """Seconds from the first request to the end of each, in order."""
    tokens: int
    cpu_s: float


class StageProcess:
    """A stage that waits, without polling, between its runs."""

    def __init__(self, system: System, role: Role) -> None:
        self._system = system
        self._role = role

    @classmethod
    async def start(
        cls,
        instance: InstanceConfig,
        dtype: str,
        folder: Path,
        environ: Mapping[str, str],
        stack: AsyncExitStack,
    ) -> "StageProcess":
        """Ready when this returns; `stack` ends it. Raises BenchError."""
        described = msgspec.json.encode(instance).decode()
        command = [*_PROGRAM, str(folder), "--dtype", dtype, "--instance", described]
        system = await System.start(command, child_environ(environ, instance.threads or 1), polls=False)
        stack.push_async_callback(system.close)
        return cls(system, instance.role)

    async def run(self, requests: Sequence[LoadRequest], split: int, clients: int) -> StageRun:
        """Serve this stage's part of every request. Raises BenchError where it did not."""
        began = cpu_seconds(self._system.pid)
        answer = await self._system.ask(
            {
                "prompts": [request.prompt for request in requests],
                "outputs": [request.output_tokens for request in requests],
                "splits": [split] * len(requests),
                "clients": clients,
            }
        )
        each = split if self._role is Role.PREFILL else requests[0].output_tokens
        if answer["tokens"] != each * len(requests):
            raise BenchError(
                f"{self._role.value} alone computed {answer['tokens']} tokens of {each * len(requests)}; see its stderr"
            )
        return StageRun(tuple(answer["ended_at"]), answer["tokens"], cpu_seconds(self._system.pid) - began)
