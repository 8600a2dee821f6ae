"""A model's folder, found or made by a process of its own, so that no other process imports torch for it."""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from common.errors import ModelError
from services.launch.commands import MODEL_PROGRAM

_GRACE_S = 5.0


async def prepare_model(name: str, environ: Mapping[str, str], program: tuple[str, ...] = MODEL_PROGRAM) -> Path:
    """The folder of the model `name`, made first where needed; progress goes to this process's stderr.

    Raises ModelError; the reason is on stderr.  Cancelling ends the process.
    """
    process = await asyncio.create_subprocess_exec(
        *program,
        name,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        await _end(process)
    lines = output.decode().split("\n") if process.returncode == 0 else []
    folder = next((line for line in reversed(lines) if line.strip()), None)
    if folder is None:
        raise ModelError(
            f"the model {name!r} could not be prepared (exit code {process.returncode}, its reason stands above);"
            " name a built-in model, a folder, a .gguf file or a hub id"
        )
    return Path(folder)


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE_S)
