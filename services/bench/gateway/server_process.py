"""Servers in processes of their own, which are gone when the block ends."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import msgspec

from services.bench.gateway.fixed_answers import FixedAnswer
from services.bench.transfer.errors import BenchError

_PROGRAM = (sys.executable, "-m", "services.bench.gateway.raw_server")
_LEAVE_S = 5.0


class Server(msgspec.Struct, frozen=True):
    """A server on 127.0.0.1, and its process."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        """Such as http://127.0.0.1:12345."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def running(
    command: Sequence[str], stdout: int | IO[bytes], stderr: int | IO[bytes] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with a pipe as its stdin, asked to end by closing that and by SIGTERM, and killed if it does not.

    Raises BenchError where it cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for the bench process, which then ends this one
        )
    except OSError as error:
        raise BenchError(f"cannot start {command[0]!r}: {error}") from error
    try:
        yield process
    finally:
        await _end(process)


@asynccontextmanager
async def raw_server(answers: Sequence[FixedAnswer], file: Path) -> AsyncIterator[Server]:
    """A raw handler that answers so, told by way of `file`. Raises BenchError."""
    _write(file, answers)
    async with running((*_PROGRAM, str(file)), asyncio.subprocess.PIPE) as process:
        assert process.stdout is not None, "started with a pipe"
        if not (line := await process.stdout.readline()):
            raise BenchError("the raw handler's process has ended before it served; its last words are above")
        yield Server(int(json.loads(line)["port"]), process.pid)


def _write(file: Path, answers: Sequence[FixedAnswer]) -> None:
    file.write_bytes(msgspec.json.encode(answers))


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None, "started with a pipe"
    process.stdin.close()
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_LEAVE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
