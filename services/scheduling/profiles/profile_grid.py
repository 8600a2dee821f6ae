"""Which steps are measured to profile an instance. Pure: limits in, steps out.

Every variable of the models in common.costs.models varies while the others do not, and values grow in equal ratios, so
that short steps and long ones are known alike.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from common.costs.shape import StepShape
from common.costs.step import Step
from services.scheduling.profiles.profile import Point, ProfileError

_LEAST_TOKENS: Final = 32
_UNBOUNDED_BUDGET: Final = 256
"""Tokens of the largest mixed step of an instance that bounds neither steps nor chunks: it makes none by itself."""


class GridLimits(msgspec.Struct, frozen=True):
    """What one step of an instance can be."""

    context_length: int
    kv_capacity_tokens: int
    block_size: int
    max_batch: int
    budget: int | None = None

    def admits(self, step: Step) -> bool:
        """Whether the KV of a step fits: all its sequences at once, each within the context length."""
        shape = step.shape
        longest = -(-shape.decode_context // shape.decodes) + 1 if shape.decodes else 0
        prompt = shape.chunk_context + shape.chunk_tokens
        blocks = self._blocks(prompt) + shape.decodes * self._blocks(longest)
        fits = blocks * self.block_size <= self.kv_capacity_tokens
        return fits and max(prompt, longest) <= self.context_length

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


class GridSize(msgspec.Struct, frozen=True):
    """How many values each variable takes, and up to what."""

    longest: int
    """Tokens of the longest prompt, and of the longest context of one sequence."""
    largest: int
    """Tokens of the largest mixed step, where the budget allows so many."""
    prompts: int
    batches: int
    contexts: int
    chunks: int


STARTUP: Final = GridSize(longest=256, largest=256, prompts=4, batches=3, contexts=2, chunks=2)
"""For an instance that measures itself when it starts: seconds with a small model on a CPU."""
QUICK: Final = GridSize(longest=512, largest=512, prompts=5, batches=3, contexts=3, chunks=2)
FULL: Final = GridSize(longest=2048, largest=2048, prompts=8, batches=5, contexts=4, chunks=3)


def grid_steps(limits: GridLimits, size: GridSize) -> tuple[Step, ...]:
    """The steps to measure, each once. Raises ProfileError where the instance holds too few tokens for a grid."""
    parts = (_prompts(limits, size), _decodes(limits, size), _mixed(limits, size))
    admitted = [list(dict.fromkeys(step for step in part if limits.admits(step))) for part in parts]
    if not all(_varies(part) for part in admitted):
        raise ProfileError(
            f"KV for {limits.kv_capacity_tokens} tokens and a context of {limits.context_length} are too few to "
            f"measure steps of different sizes with up to {limits.max_batch} sequences; raise the instance's kv_memory"
        )
    return tuple(step for part in admitted for step in part)


def point_of(step: Step, seconds: Sequence[float]) -> Point:
    """What was measured of a step; `seconds` of each repetition, at least one."""
    return Point(
        shape=step.shape,
        is_prefill=step.is_prefill,
        seconds=statistics.median(seconds),
        seconds_min=min(seconds),
        seconds_max=max(seconds),
        repeats=len(seconds),
    )


def _varies(steps: Sequence[Step]) -> bool:
    """Whether there are more steps than coefficients, and nothing that varies in any of them is the same in all."""
    rows = [(*msgspec.structs.astuple(step.shape), step.shape.tokens) for step in steps]
    variables = {column for column in zip(*rows, strict=True) if any(column)}
    return len(steps) > len(variables) + 1 and all(len(set(column)) > 1 for column in variables)


def _prompts(limits: GridLimits, size: GridSize) -> Iterator[Step]:
    longest = min(size.longest, limits.context_length, limits.kv_capacity_tokens)
    for tokens in _in_ratio(_shortest(longest), longest, size.prompts):
        yield Step(StepShape(chunk_tokens=tokens), is_prefill=True)


def _decodes(limits: GridLimits, size: GridSize) -> Iterator[Step]:
    for batch in _batches(limits, size.batches):
        longest = _longest_context(limits, size, batch)
        for context in _in_ratio(_shortest(longest), longest, size.contexts):
            yield Step(StepShape(decodes=batch, decode_context=batch * context))


def _mixed(limits: GridLimits, size: GridSize) -> Iterator[Step]:
    """Chunks of several lengths, behind several contexts, among no decodes, short ones and long ones."""
    # Half of the KV is for the prompt, half for the decodes beside it.
    halved = msgspec.structs.replace(limits, kv_capacity_tokens=limits.kv_capacity_tokens // 2)
    batch = _batches(limits, 2)[-1]
    longest = _longest_context(halved, size, batch)
    contexts = _in_ratio(_shortest(longest), longest, 2)
    beside = [(0, 0), *((batch, batch * context) for context in contexts)]
    # With fewer tokens than two for the chunk and one for each decode a step is not mixed at all.
    least = batch + 2
    budget = max(min(limits.budget or _UNBOUNDED_BUDGET, size.largest), 2 * least)
    room = min(max(size.longest, 2 * budget), limits.context_length, halved.kv_capacity_tokens)
    most = min(budget, room // 2)
    # Only steps that nearly fill the budget, as engines make them: a token of context costs a chunk in proportion to
    # its length, so that one price for it is right for one length, and this is the one that long prompts are cut to.
    for tokens in _in_ratio(max(least, most // 2), most, size.chunks):
        for decodes, decode_context in beside:
            chunk = tokens - decodes
            for chunk_context in (0, *_in_ratio((room - chunk) // 4, room - chunk, size.chunks - 1)):
                yield Step(StepShape(chunk, chunk_context, decodes, decode_context))


def _batches(limits: GridLimits, count: int) -> list[int]:
    # Two at least: with one alone, what a sequence costs cannot be told from what a step costs.
    return _in_ratio(1, max(2, limits.max_batch), count)


def _longest_context(limits: GridLimits, size: GridSize, batch: int) -> int:
    """Of each of `batch` decodes: with its next token it must fit."""
    blocks = limits.kv_capacity_tokens // limits.block_size // batch
    return min(size.longest, limits.context_length, blocks * limits.block_size) - 1


def _shortest(longest: int) -> int:
    return min(_LEAST_TOKENS, longest // 8)


def _in_ratio(least: int, most: int, count: int) -> list[int]:
    """`count` (at least 1) whole numbers from `least` (from 1 where it is less) to `most`, in equal ratios.

    Fewer where they coincide; none where `most` is below `least`.
    """
    least = max(1, least)
    if most < least:
        return []
    if count < 2:
        return [most]
    ratio = most / least
    return sorted({round(least * ratio ** (index / (count - 1))) for index in range(count)})
