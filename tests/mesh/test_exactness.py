"""Promise 1 with the real model in float32, over HTTP through three processes: the answer never depends on the mesh."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.mesh.processes import Processes, processes
from tests.mesh.prompts import PROMPTS
from tests.mesh.reference import NEAR_TIE, Expected, Reference, first_difference

MAX_TOKENS = 48
QUICK_PROMPTS = (0, 9, 19, 23, 26, 33, 37, 39)
"""In `scripts/test`: a question, code, a list, German, Japanese, emoji, a long one, accents."""
TOKEN_BYTES = 30 * 2 * 3 * 64 * 4
"""SmolLM2-135M: layers x (K, V) x KV heads x head size x float32."""

pytestmark = pytest.mark.timeout(1500)


class Case(msgspec.Struct, frozen=True):
    prompt: int
    split: str | int


class Outcome(msgspec.Struct, frozen=True):
    case: Case
    text: str
    tokens: list[str]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    placement: str


@pytest.fixture(scope="module")
def reference(smollm2_folder: Path) -> Reference:
    return Reference(smollm2_folder)


@pytest.fixture
async def mesh(smollm2_folder: Path) -> AsyncIterator[Processes]:
    async with processes(smollm2_folder) as mesh:
        yield mesh


async def ask(mesh: Processes, case: Case) -> Outcome:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": PROMPTS[case.prompt]}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "logprobs": True,
        "pdmesh": {"split": case.split},
    }
    async with mesh.client.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        answer = await response.json()
        placement = response.headers["x-pdmesh-placement"]
    choice = answer["choices"][0]
    return Outcome(
        case=case,
        text=choice["message"]["content"],
        tokens=[entry["token"] for entry in choice["logprobs"]["content"]],
        finish_reason=choice["finish_reason"],
        prompt_tokens=answer["usage"]["prompt_tokens"],
        completion_tokens=answer["usage"]["completion_tokens"],
        placement=placement,
    )


def splits_of(length: int, count: int, seed: int) -> list[str | int]:
    """0, full, and `count` random ones strictly between."""
    between = random.Random(seed).sample(range(1, length - 1), count)
    return [0, "full", *between]


async def run_and_compare(mesh: Processes, reference: Reference, prompts: tuple[int, ...], random_splits: int) -> None:
    expected = {index: reference.answer(PROMPTS[index], MAX_TOKENS) for index in prompts}
    cases = [
        Case(index, split)
        for index in prompts
        for split in splits_of(expected[index].prompt_tokens, random_splits, seed=index)
    ]
    random.Random(7).shuffle(cases)
    before = await mesh.metric("pdmesh_handoff_bytes_total")
    outcomes = await asyncio.gather(*(ask(mesh, case) for case in cases))
    planned = sum(check_placement(outcome, expected[outcome.case.prompt]) for outcome in outcomes)
    await mesh.until_nothing_is_held()
    assert await mesh.metric("pdmesh_handoff_bytes_total") - before == planned, "bytes planned are bytes moved"
    near_ties = [tie for outcome in outcomes if (tie := compare(outcome, expected[outcome.case.prompt])) is not None]
    for tie in near_ties:
        print(tie)
    assert len(near_ties) * 100 <= len(outcomes), near_ties


def check_placement(outcome: Outcome, expected: Expected) -> int:
    """The header says the split that was asked for; returns the bytes it plans."""
    length = expected.prompt_tokens
    split = length - 1 if outcome.case.split == "full" else int(outcome.case.split)
    prefill = "p0" if split else "-"
    assert outcome.placement == f"prefill={prefill}; decode=d0; split={split}; kv-bytes={split * TOKEN_BYTES}"
    return split * TOKEN_BYTES


def compare(outcome: Outcome, expected: Expected) -> str | None:
    """None where the answer is the reference's; words on a near-tie; an assertion for any other difference."""
    assert outcome.prompt_tokens == expected.prompt_tokens
    if outcome.text == expected.text:
        assert outcome.finish_reason == expected.finish_reason
        assert outcome.completion_tokens == len(expected.tokens)
        return None
    return near_tie(outcome, expected)


def near_tie(outcome: Outcome, expected: Expected) -> str:
    tokenizer_pieces = expected.pieces
    at = first_difference(tokenizer_pieces, outcome.tokens)
    assert at is not None
    margin = expected.margins[at]
    words = f"{outcome.case}: token {at} differs, the reference's margin there is {margin:.2e}"
    assert margin < NEAR_TIE, f"{words}\nexpected {expected.text!r}\nfound    {outcome.text!r}"
    return words


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
