"""One engine under measurement, in a process of its own that answers trials line by line."""

import asyncio
import json
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Self

from services.bench.engine.errors import BenchError
from services.bench.engine.loads import Load

_LEAVE_S = 10.0
_LINE_BYTES = 1 << 24


class System:
    """What is said on the pipes stands in `trial` and `stage_trial` (services.engine.measuring). Its stderr is ours."""

    def __init__(self, process: asyncio.subprocess.Process, *, polls: bool = True) -> None:
        self._process = process
        self._polls = polls
        self.name = self.version = ""

    @classmethod
    async def start(
        cls, command: Sequence[str], environ: Mapping[str, str] | None = None, *, polls: bool = True
    ) -> Self:
        """Ready when this returns; the caller closes it. Raises BenchError where the program ends instead.

        `environ`: None is this process's own. `polls`: whether the program may use a core while it idles; it then
        stands still between trials.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environ,
            limit=_LINE_BYTES,
            # Ctrl-C is for the bench process, which then ends this one. One that stands still does not see its stdin
            # close: when the bench process is killed, the kernel hangs up on a stopped group of its session.
            # (uvloop knows no groups.)
            **({"process_group": 0} if polls else {"start_new_session": True}),
        )
        system = cls(process, polls=polls)
        try:
            hello = await system._hear()
        except BaseException:
            await system.close()
            raise
        system.name, system.version = hello["name"], hello["version"]
        system._pause()
        return system

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def seconds(self, load: Load) -> float:
        """Serve `load` once. Raises BenchError where tokens are missing."""
        answer = await self.ask({"prompts": load.prompts, "outputs": load.outputs})
        if answer["tokens"] != sum(load.outputs):
            raise BenchError(f"{self.name} gave {answer['tokens']} tokens of {sum(load.outputs)}; see its stderr")
        return float(answer["seconds"])

    async def ask(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one trial. Raises BenchError where the program has ended."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None, "started with a pipe"
        self._process.stdin.write(json.dumps(trial).encode() + b"\n")
        answer = await self._hear()
        self._pause()
        return answer

    async def close(self) -> None:
        """End the process: it leaves when its stdin closes, or is killed."""
        assert self._process.stdin is not None, "started with a pipe"
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _pause(self) -> None:
        if self._polls:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "started with a pipe"
        while line := await self._process.stdout.readline():
            if line.startswith(b"{"):  # libraries may write to stdout, too
                return dict(json.loads(line))
        raise BenchError(f"{self.name or 'an engine'} has ended; its last words are above")
