import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from common.errors import ModelError
from services.launch.model import prepare_model

MODEL = "org/tiny"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """One whose cache holds no model."""
    return {**os.environ, "PDMESH_CACHE": str(tmp_path / "cache")}


def program(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


async def test_the_last_line_is_the_folder(environ):
    code = "import sys; print('noise'); print('/models/' + sys.argv[1]); print()"
    assert await prepare_model(MODEL, environ, program(code)) == Path("/models/org/tiny")


@pytest.mark.parametrize("code", ["import sys; print('/x'); sys.exit(1)", "pass"])
async def test_a_failure_or_silence_is_an_error_that_names_the_model(code, environ):
    with pytest.raises(ModelError, match="'org/tiny' could not be prepared"):
        await prepare_model(MODEL, environ, program(code))


async def test_cancelling_ends_the_process(tmp_path, environ):
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    task = asyncio.ensure_future(prepare_model(MODEL, environ, program(code)))
    while not (pid_file.exists() and pid_file.read_text()):  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(int(pid_file.read_text()))


async def test_a_model_that_lies_ready_or_is_not_known_costs_no_process(tmp_path, environ):
    never = ("/no/such/program",)
    (tmp_path / "config.json").write_text("{}")
    assert await prepare_model(str(tmp_path), environ, never) == tmp_path
    with pytest.raises(ModelError, match="'tiny' is not known"):
        await prepare_model("tiny", environ, never)
