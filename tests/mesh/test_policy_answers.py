"""Promise 1 under every policy: who computes what never changes an answer."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.config.types import MeshConfig
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from services.scheduling.profiles.profile import Origin, Profile, Subject, encode_profile
from tests.mesh.inprocess import Answer, InProcessMesh, in_process_mesh, mesh_config
from tests.mesh.processes import Processes, processes

PROMPTS = tuple("the quick brown fox jumps over the lazy dog " * n + f"and so on {n}" for n in (1, 2, 4, 7, 11))
COSTS = InstanceCosts(
    PrefillCost(base=0.001, per_token=0.0004),
    MixedStepCost(base=0.001, per_token=0.0002, per_chunk_context=0.0, per_decode_context=0.0),
    DecodeStepCost(base=0.0005, per_sequence=0.0001, per_context=0.0),
)
"""P at half of D's speed: splits lie inside the prompts as soon as D has something to do."""


def config_of(policy: str, folder: Path, *, prefill: int, decode: int, **more: Any) -> MeshConfig:
    profile = Profile(Subject("deterministic", "float32"), Origin.MEASURED, "a test", COSTS, {})
    file = folder / "profile.json"
    file.write_bytes(encode_profile(profile))
    config = mesh_config(prefill=prefill, decode=decode)
    instances = tuple(msgspec.structs.replace(one, profile=str(file), **more) for one in config.instances)
    return msgspec.structs.replace(config, policy=policy, instances=instances)


async def crowd(mesh: InProcessMesh) -> list[Answer]:
    """Every prompt four times, all at once."""
    return await asyncio.gather(*(mesh.complete(prompt, ignore_eos=True) for prompt in PROMPTS * 4))


def splits(answers: list[Answer]) -> list[int]:
    return [int(str(answer.placement).split("split=")[1].split(";")[0]) for answer in answers]


@pytest.mark.parametrize(
    ("policy", "prefill", "decode"), [("cronus", 1, 1), ("cronus", 2, 2), ("dp", 0, 2), ("disagg", 2, 1)]
)
async def test_answers_are_those_of_one_engine(
    policy: str, prefill: int, decode: int, deterministic_folder: Path, tmp_path: Path
) -> None:
    alone = msgspec.structs.replace(mesh_config(prefill=0, decode=1), split=0)
    async with in_process_mesh(alone, deterministic_folder) as mesh:
        expected = [answer.text for answer in await crowd(mesh)]
    config = config_of(policy, tmp_path, prefill=prefill, decode=decode)
    async with in_process_mesh(config, deterministic_folder) as mesh:
        answers = await crowd(mesh)
        assert [answer.text for answer in answers] == expected
        found = splits(answers)
    match policy:
        case "cronus":
            assert any(0 < split < len(prompt) - 1 for split, prompt in zip(found, PROMPTS * 4, strict=True))
        case "dp":
            assert set(found) == {0}
        case "disagg":
            assert found == [len(prompt) - 1 for prompt in PROMPTS * 4]


async def test_a_p_that_computes_in_chunks_gives_the_same(deterministic_folder: Path, tmp_path: Path) -> None:
    texts = []
    for chunk in (None, 16):
        config = config_of("cronus", tmp_path, prefill=1, decode=1, prefill_chunk=chunk)
        async with in_process_mesh(config, deterministic_folder) as mesh:
            texts.append([answer.text for answer in await crowd(mesh)])
    assert texts[0] == texts[1]


async def ask(mesh: Processes, prompt: str) -> tuple[str, int]:
    body = {"model": "smollm2", "prompt": prompt, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    async with mesh.client.post("/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        placement = response.headers["x-pdmesh-placement"]
        return (await response.json())["choices"][0]["text"], int(placement.split("split=")[1].split(";")[0])


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_real_model_answers_alike_whoever_computes(smollm2_folder: Path) -> None:
    """Processes that measure themselves at the start; float32, greedy, against split 0."""
    base = mesh_config(prefill=1, decode=1)
    instances = tuple(msgspec.structs.replace(one, self_profile=True) for one in base.instances)
    config = msgspec.structs.replace(MeshConfig(), policy="cronus", instances=instances)
    async with processes(smollm2_folder, config) as mesh:
        crowd = await asyncio.gather(*(ask(mesh, prompt) for prompt in PROMPTS * 3))
    plain = msgspec.structs.replace(config, policy="fixed", split=0)
    async with processes(smollm2_folder, plain) as mesh:
        expected = {prompt: (await ask(mesh, prompt))[0] for prompt in PROMPTS}
    assert [text for text, _ in crowd] == [expected[prompt] for prompt in PROMPTS * 3]
    assert any(split > 0 for _, split in crowd)
