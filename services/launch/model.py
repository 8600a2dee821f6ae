"""A model's folder, found or made by a process of its own, so that no other process imports torch for it."""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from common.errors import ModelError
from common.model_store import ModelLocation, cache_root, resolve
from services.launch.commands import MODEL_PROGRAM

_GRACE_S = 5.0


async def prepare_model(name: str, environ: Mapping[str, str], program: tuple[str, ...] = MODEL_PROGRAM) -> Path:
    """The folder of the model `name`, made first where needed; progress goes to this process's stderr.

    One that lies ready costs no process.  Raises ModelError; the reason is in it or on stderr.  Cancelling ends the
    process.
    """
    if (ready := _lies_ready(name, environ)) is not None:
        return ready
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


def _lies_ready(name: str, environ: Mapping[str, str]) -> Path | None:
    if Path(name).suffix == ".gguf":
        return None  # known by the sha256 of the whole file, which takes seconds and must be cancellable
    found = resolve(name, cache_root(environ))
    return found.folder if isinstance(found, ModelLocation) else None


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE_S)
