"""Clients that people have, unchanged, against a mesh on a real port: langchain-openai, litellm, instructor.

Each runs in a process and an environment of its own, as a user's does.
"""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.inprocess import in_process_mesh, mesh_config
from tests.mesh.test_structured_answers import roomy

pytestmark = pytest.mark.slow
"""To import these clients takes seconds, and their environment minutes."""

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-clients"
PYTHON = ENVIRONMENT / "bin" / "python"
CLIENTS = Path(__file__).parent / "clients"
MODEL = "smollm2"
# Whatever a client asks of another host than this one fails at once.
ALONE = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
}


async def test_langchain_gets_the_same_answer_in_every_way_that_it_has(deterministic_folder: Path) -> None:
    got = await run("langchain_client.py", deterministic_folder)
    assert got["whole"]
    assert got["whole"] == got["asynchronous"] == got["streamed"]
    assert got["batch"] == [got["whole"]] * 2
    assert got["tokens"] == got["streamed_tokens"] <= 24
    assert got["plain"]
    assert "context_length_exceeded" in got["too_long"]
    walks = got["structured"]
    called, streamed = walks.pop("called"), walks.pop("called_streamed")
    assert [name for name, _ in called] == ["Walk"]
    assert streamed == called
    assert set(walks) == {"json_schema", "function_calling"}
    for walk in (*walks.values(), called[0][1]):
        check_walk(walk)


async def test_litellm_gets_the_same_answer_in_every_way_and_knows_the_errors(deterministic_folder: Path) -> None:
    got = await run("litellm_client.py", deterministic_folder)
    assert got["whole"]
    assert got["whole"] == got["streamed"]
    assert got["asynchronous"] == [got["whole"]] * 2
    assert got["tokens"] == got["streamed_tokens"] <= 24
    assert got["plain"]
    errors = (got["too_long"], got["unknown_model"], got["mistaken"])
    assert errors == ("ContextWindowExceededError", "NotFoundError", "BadRequestError")
    called, streamed = got["called"]
    assert called == streamed
    ((name, arguments),) = called
    assert name == "walk"
    check_walk(json.loads(arguments))


async def test_instructor_gets_what_it_asked_for_in_every_mode(deterministic_folder: Path) -> None:
    got = await run("instructor_client.py", deterministic_folder)
    for grown in got.pop("partial"):
        *growing, shore = grown
        assert any(one["name"] is not None and one["is_wet"] is None for one in growing), "it came bit by bit"
        assert shore["is_wet"] in (True, False)
        assert 1 <= shore["steps"] <= 99
        assert len(shore["name"]) <= 6
    assert set(got) == {"asynchronous", "json_schema_mode", "tool_call"}
    for mode, sea in got.items():
        assert isinstance(sea, dict), (mode, sea)
        assert sea["colour"] in ("green", "blue", "grey")
        assert isinstance(sea["is_calm"], bool)


def check_walk(walk: dict[str, Any]) -> None:
    """It has the form asked for; the words of this model are by chance."""
    assert set(walk) == {"way", "steps"}
    assert walk["way"] in ("left", "right")
    assert 1 <= walk["steps"] <= 9


async def run(program: str, model_folder: Path) -> dict[str, Any]:
    """What the client says of a mesh, in the environment of scripts/clients."""
    if not (ENVIRONMENT / ".installed").exists():
        pytest.skip("needs the environment that scripts/clients makes")
    async with in_process_mesh(mesh_config(), model_folder, build=roomy) as mesh:
        process = await asyncio.create_subprocess_exec(
            str(PYTHON),
            str(CLIENTS / program),
            mesh.gateway.url,
            MODEL,
            env={**os.environ, **ALONE},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        told, complaints = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, complaints.decode()[-3000:]
    found: dict[str, Any] = json.loads(told.decode().splitlines()[-1])
    return found
