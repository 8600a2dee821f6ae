"""Every question to a running mesh: unsplit first, then split, whole and streamed."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
import msgspec

from common.errors import PdmeshError
from services.bench.parity.essence import Essence, difference, essence_of, essence_of_events, logprob_error
from services.bench.parity.questions import Question
from services.bench.repeats import OnStep

Split = str | int | float

SPLITS: Final[tuple[Split, ...]] = (1, 0.5, "full")
"""One token at P, half of the prompt, all but the last token: beside 0, which they are compared with."""

_ANSWER_S: Final = 120.0


class ParityError(PdmeshError):
    """The mesh could not be asked."""


class Outcome(msgspec.Struct, frozen=True):
    """One answer, beside the same question unsplit and not streamed."""

    question: str
    split: Split
    streamed: bool
    placement: str
    logprob_error: float
    difference: str | None
    """In words; None: the same answer."""


async def ask_everything(
    client: aiohttp.ClientSession,
    model: str,
    questions: Sequence[Question],
    on_step: OnStep,
    splits: Sequence[Split] = SPLITS,
) -> list[Outcome]:
    """In the order of `questions`; those of one question at once. Raises ParityError where the mesh does not answer."""
    outcomes = []
    for question in questions:
        on_step(question.name)
        _, expected = await _asked(client, model, question, 0, streamed=False)
        ways = [(split, streamed) for split in (0, *splits) for streamed in (False, True)]
        ways = [way for way in ways if way != (0, False) and (question.streams or not way[1])]
        answers = await asyncio.gather(*(_asked(client, model, question, *way) for way in ways))
        for (split, streamed), (placement, found) in zip(ways, answers, strict=True):
            error = logprob_error(found, expected)
            outcomes.append(Outcome(question.name, split, streamed, placement, error, difference(found, expected)))
    return outcomes


async def _asked(
    client: aiohttp.ClientSession, model: str, question: Question, split: Split, streamed: bool
) -> tuple[str, Essence]:
    body: dict[str, Any] = {"model": model, **question.body, "pdmesh": {"split": split}}
    if streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    try:
        async with client.post(question.path, json=body, timeout=timeout) as response:
            text = await response.text()
            placement = response.headers.get("x-pdmesh-placement", "")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ParityError(f"{question.name!r} got no answer: {error!r}") from error
    if response.status != 200:
        raise ParityError(f"{question.name!r} with split {split!r} was refused, HTTP {response.status}: {text[:500]}")
    try:
        return placement, essence_of_events(_events(text)) if streamed else essence_of(msgspec.json.decode(text))
    except (KeyError, TypeError, ValueError) as error:
        raise ParityError(f"{question.name!r}: the answer is not an OpenAI one ({error!r}): {text[:500]}") from error


def _events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if not lines or lines.pop() != "[DONE]":
        raise ValueError("a stream that does not end with [DONE]")
    return [msgspec.json.decode(line) for line in lines]
