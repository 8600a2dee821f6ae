"""Questions to a mesh, and how its answers compare with the reference's (promise 1)."""

import asyncio
import random
import re
from collections.abc import Iterable, Sequence

import msgspec

from tests.mesh.processes import Processes
from tests.mesh.prompts import PROMPTS
from tests.mesh.reference import NEAR_TIE, Expected, first_difference

MAX_TOKENS = 48
QUICK_PROMPTS = (0, 9, 19, 23, 26, 33, 37, 39)
"""In `scripts/test`: a question, code, a list, German, Japanese, emoji, a long one, accents."""
TOKEN_ELEMENTS = 30 * 2 * 3 * 64
"""SmolLM2-135M: layers x (K, V) x KV heads x head size."""


class Case(msgspec.Struct, frozen=True):
    prompt: int
    split: str | int


class Outcome(msgspec.Struct, frozen=True):
    case: Case
    text: str
    pieces: list[bytes]
    """Of each token."""
    logprobs: list[float]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    placement: str


class Likeness(msgspec.Struct, frozen=True):
    """How near answers come that need not be equal: with casts."""

    same_tokens: float
    """Share of the reference's tokens before the first difference of each answer."""
    logprob_error: float
    """Largest difference of a token's logprob from the reference's, among those."""


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
        pieces=[bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]],
        logprobs=[entry["logprob"] for entry in choice["logprobs"]["content"]],
        finish_reason=choice["finish_reason"],
        prompt_tokens=answer["usage"]["prompt_tokens"],
        completion_tokens=answer["usage"]["completion_tokens"],
        placement=placement,
    )


async def ask_all(mesh: Processes, cases: Iterable[Case]) -> list[Outcome]:
    """All at once, in any order."""
    shuffled = list(cases)
    random.Random(7).shuffle(shuffled)
    return await asyncio.gather(*(ask(mesh, case) for case in shuffled))


def splits_of(length: int, count: int, seed: int) -> list[str | int]:
    """0, full, and `count` random ones strictly between."""
    between = random.Random(seed).sample(range(1, length - 1), count)
    return [0, "full", *between]


def check_placement(outcome: Outcome, expected: Expected, token_bytes: int) -> int:
    """The header says the split that was asked for; returns the bytes it plans."""
    length = expected.prompt_tokens
    split = length - 1 if outcome.case.split == "full" else int(outcome.case.split)
    prefill = "p0" if split else "-"
    assert outcome.placement == f"prefill={prefill}; decode=d0; split={split}; kv-bytes={split * token_bytes}"
    return split * token_bytes


async def bytes_handed_off(mesh: Processes) -> dict[str, float]:
    """Payload bytes by backend, as the mesh counts them."""
    found: dict[str, float] = {}
    for name, value in (await mesh.metrics()).items():
        if (shown := re.match(r'pdmesh_handoff_bytes_total\{backend="([^"]*)"', name)) is not None:
            found[shown[1]] = found.get(shown[1], 0.0) + value
    return found


def assert_equal_answers(outcomes: Sequence[Outcome], expected: dict[int, Expected]) -> None:
    """Promise 1: equal, but for one in a hundred that differs where the reference itself is in doubt."""
    near_ties = [tie for outcome in outcomes if (tie := _compare(outcome, expected[outcome.case.prompt])) is not None]
    for tie in near_ties:
        print(tie)
    assert len(near_ties) * 100 <= len(outcomes), near_ties


def _compare(outcome: Outcome, expected: Expected) -> str | None:
    """None where the answer is the reference's; words on a near-tie; an assertion for any other difference."""
    assert outcome.prompt_tokens == expected.prompt_tokens
    if outcome.text == expected.text:
        assert outcome.finish_reason == expected.finish_reason
        assert outcome.completion_tokens == len(expected.tokens)
        return None
    at = first_difference(expected.pieces, outcome.pieces)
    assert at is not None
    margin = expected.margins[at]
    words = f"{outcome.case}: token {at} differs, the reference's margin there is {margin:.2e}"
    assert margin < NEAR_TIE, f"{words}\nexpected {expected.text!r}\nfound    {outcome.text!r}"
    return words


def likeness(outcomes: Sequence[Outcome], expected: dict[int, Expected]) -> Likeness:
    """Over all answers together."""
    same = total = 0
    error = 0.0
    for outcome in outcomes:
        wanted = expected[outcome.case.prompt]
        at = first_difference(wanted.pieces, outcome.pieces)
        equal = len(wanted.pieces) if at is None else at
        same, total = same + equal, total + len(wanted.pieces)
        pairs = zip(wanted.logprobs[:equal], outcome.logprobs[:equal], strict=True)
        error = max([error, *(abs(mine - theirs) for mine, theirs in pairs)])
    return Likeness(same / total, error)
