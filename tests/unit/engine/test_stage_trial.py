"""A stage alone, by the program that benchmarks start."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from services.engine.twin.deterministic_model import write_deterministic_model

PROMPTS = [[5] * 40, [6] * 40, [7] * 40, [8] * 40]


async def run(tmp_path: Path, role: str, *trials: dict[str, Any]) -> tuple[int | None, list[dict[str, Any]], str]:
    """Exit code, what it said, and stderr."""
    folder = write_deterministic_model(tmp_path / "model")
    instance = json.dumps({"id": "alone", "role": role, "threads": 1, "kv_memory": "4MiB"})
    command = ["-m", "services.engine.measuring.stage_trial", str(folder), "--dtype", "float32", "--instance", instance]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    lines = "".join(json.dumps(trial) + "\n" for trial in trials)
    out, err = await process.communicate(lines.encode())
    return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


def trial(split: int, clients: int, outputs: int = 3) -> dict[str, Any]:
    return {"prompts": PROMPTS, "outputs": [outputs] * 4, "splits": [split] * 4, "clients": clients}


async def test_prefill_alone_computes_its_part_of_every_prompt(tmp_path: Path) -> None:
    code, (hello, *answers), _ = await run(tmp_path, "prefill", trial(39, 2), trial(20, 9))
    assert code == 0
    assert hello["name"] == "pdmesh"
    assert [answer["tokens"] for answer in answers] == [4 * 39, 4 * 20]
    for answer in answers:
        assert len(answer["ended_at"]) == 4
        assert 0 < answer["ended_at"][0] <= answer["ended_at"][-1]
        assert answer["ended_at"] == sorted(answer["ended_at"])


async def test_decode_alone_takes_its_kv_for_granted(tmp_path: Path) -> None:
    code, (_, *answers), _ = await run(tmp_path, "decode", trial(39, 2), trial(0, 1, outputs=5))
    assert code == 0
    assert [answer["tokens"] for answer in answers] == [4 * 3, 4 * 5]
    assert [len(answer["ended_at"]) for answer in answers] == [4, 4]


async def test_what_cannot_be_served_ends_the_program(tmp_path: Path) -> None:
    code, said, err = await run(tmp_path, "decode", {"prompts": [[]], "outputs": [1], "splits": [0], "clients": 1})
    assert code not in (0, None)
    assert len(said) == 1
    assert "the prompt is empty" in err
