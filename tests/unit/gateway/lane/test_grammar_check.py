"""Hostile schemas cost a process, and nobody else anything."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.gateway.lane.grammar_check import REMEMBERED, GrammarCheck
from services.text.json_grammar import json_grammar

FINE = json_grammar({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}}})
ENDLESS = json_grammar({"type": "string", "allOf": [{"pattern": f".*a{i}.*"} for i in range(40)]})
"""Takes exponential time to compile."""


def deep() -> str:
    """Runs out of stack."""
    chain: dict[str, Any] = {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(1200)}
    return json_grammar({"$ref": "#/$defs/a0", "$defs": {**chain, "a1200": {"type": "null"}}})


@pytest.fixture
async def check() -> AsyncIterator[GrammarCheck]:
    made = GrammarCheck(1.5)
    yield made
    await made.close()


async def test_what_hangs_or_kills_the_compiler_is_refused_and_the_next_question_answered(check: GrammarCheck) -> None:
    assert await check.refusal(FINE) is None
    endless, small, too_deep = await asyncio.gather(
        check.refusal(ENDLESS), check.refusal('start: "a"'), check.refusal(deep())
    )
    assert "more than 1.5 s" in str(endless)
    assert small is None
    assert "nests too deep" in str(too_deep)
    assert await check.refusal('start: "b"') is None


async def test_a_client_that_leaves_does_not_shift_the_answers(check: GrammarCheck) -> None:
    asked = asyncio.create_task(check.refusal(ENDLESS))
    await asyncio.sleep(0.05)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await check.refusal("start: missing") is not None
    assert await check.refusal(FINE) is None


async def test_verdicts_are_remembered_within_bounds(check: GrammarCheck) -> None:
    reason = await check.refusal(json_grammar({"not": {}}))
    assert reason is not None
    assert reason.startswith("failed to compile JSON schema: ")
    assert "answer" not in reason
    await check.close()
    assert await check.refusal(json_grammar({"not": {}})) == reason
    assert check._process is None, "what is remembered needs no process"
    for i in range(REMEMBERED):
        await check.refusal(f'start: "{i}"')
    assert len(check._verdicts) == REMEMBERED


async def test_what_nothing_satisfies_is_refused(check: GrammarCheck) -> None:
    assert await check.refusal(json_grammar({"$ref": "#"})) == "nothing satisfies it"
