"""Trials by the program that benchmarks start."""

import asyncio
import json
import sys
from pathlib import Path

from services.engine.twin.deterministic_model import write_deterministic_model


async def test_trials_over_pipes(tmp_path: Path) -> None:
    folder = write_deterministic_model(tmp_path / "model")
    command = ["-m", "services.engine.measuring.trial", str(folder), "--threads", "1", "--dtype", "float32"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    asked = ({"prompts": [[5] * 40, [6]], "outputs": [7, 1]}, {"prompts": [[7, 8]], "outputs": [3]})
    lines = "".join(json.dumps(trial) + "\n" for trial in asked)
    out, _ = await process.communicate(lines.encode())
    hello, *answers = (json.loads(line) for line in out.splitlines())
    assert process.returncode == 0
    assert hello["name"] == "pdmesh"
    assert [answer["tokens"] for answer in answers] == [8, 3]
    assert all(answer["seconds"] > 0 for answer in answers)


async def test_a_trial_that_cannot_be_served_ends_the_program(tmp_path: Path) -> None:
    folder = write_deterministic_model(tmp_path / "model")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.engine.measuring.trial", str(folder), "--threads", "1", "--dtype", "float32"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(b'{"prompts": [[]], "outputs": [1]}\n')
    assert process.returncode != 0
    assert len(out.splitlines()) == 1
    assert b"the prompt is empty" in err
