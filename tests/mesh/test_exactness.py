"""Promise 1 with the real model in float32, over HTTP through three processes: the answer never depends on the mesh."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.mesh.answers import (
    MAX_TOKENS,
    QUICK_PROMPTS,
    TOKEN_ELEMENTS,
    Case,
    ask,
    ask_all,
    assert_equal_answers,
    bytes_handed_off,
    check_placement,
    splits_of,
)
from tests.mesh.processes import Processes, processes
from tests.mesh.prompts import PROMPTS
from tests.mesh.reference import Reference

TOKEN_BYTES = TOKEN_ELEMENTS * 4

# One mesh serves all of these tests: to start it takes ten seconds.
pytestmark = [pytest.mark.timeout(1500), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def reference(smollm2_folder: Path) -> Reference:
    return Reference(smollm2_folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(smollm2_folder: Path) -> AsyncIterator[Processes]:
    async with processes(smollm2_folder) as mesh:
        yield mesh


async def run_and_compare(mesh: Processes, reference: Reference, prompts: tuple[int, ...], random_splits: int) -> None:
    expected = {index: reference.answer(PROMPTS[index], MAX_TOKENS) for index in prompts}
    cases = [
        Case(index, split)
        for index in prompts
        for split in splits_of(expected[index].prompt_tokens, random_splits, seed=index)
    ]
    before = await bytes_moved(mesh)
    outcomes = await ask_all(mesh, cases)
    planned = sum(check_placement(outcome, expected[outcome.case.prompt], TOKEN_BYTES) for outcome in outcomes)
    await mesh.until_nothing_is_held()
    assert await bytes_moved(mesh) - before == planned, "bytes planned are bytes moved"
    assert_equal_answers(outcomes, expected)


async def bytes_moved(mesh: Processes) -> float:
    return sum((await bytes_handed_off(mesh)).values())


async def test_answers_equal_the_reference(mesh: Processes, reference: Reference) -> None:
    await run_and_compare(mesh, reference, QUICK_PROMPTS, random_splits=1)


@pytest.mark.slow
async def test_answers_equal_the_reference_for_every_prompt(mesh: Processes, reference: Reference) -> None:
    await run_and_compare(mesh, reference, tuple(range(len(PROMPTS))), random_splits=3)


async def test_sampled_text_is_the_same_for_every_split_and_crowd(mesh: Processes) -> None:
    async def sampled(split: str | int, seed: int, **more: object) -> list[str]:
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": PROMPTS[36]}],
            "max_tokens": 32,
            "temperature": 0.8,
            "top_p": 0.95,
            "seed": seed,
            "pdmesh": {"split": split},
        }
        async with mesh.client.post("/v1/chat/completions", json=body | more) as response:
            assert response.status == 200, await response.text()
            return [choice["message"]["content"] for choice in (await response.json())["choices"]]

    alone = await sampled(0, seed=1)
    splits: list[str | int] = ["full", 0, 5, 17]
    crowd = await asyncio.gather(*(sampled(splits[i % 4], seed=1 if i < 8 else i) for i in range(16)))
    assert crowd[:8] == [alone] * 8
    assert len({text for texts in crowd for text in texts}) == 9, "other seeds say other things"
    three = [await sampled(split, seed=3, n=3) for split in (0, "full", 11)]
    assert three[0] == three[1] == three[2]
    assert len(set(three[0])) == 3
    await mesh.until_nothing_is_held()


async def test_the_gateway_process_never_loads_torch(mesh: Processes) -> None:
    gateway, decode = ([m.path for m in psutil.Process(mesh.pid(name)).memory_maps()] for name in ("gateway", "d0"))
    assert any("uvloop" in path for path in gateway), "this is not the gateway, or the check sees nothing"
    assert not [path for path in gateway if "torch" in path or "transformers" in path]
    assert any("libtorch" in path for path in decode)


async def test_the_answer_to_the_first_question_is_sensible(mesh: Processes) -> None:
    assert "Paris" in (await ask(mesh, Case(0, "full"))).text
