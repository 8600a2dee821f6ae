"""Measuring the steps of a running engine: steps of a given shape, of random tokens, on blocks of its own pool."""

import random
from collections.abc import Callable, Iterator
from typing import Final

from common.costs.shape import StepShape
from common.costs.step import Step
from common.errors import PdmeshError
from common.messages.sampling import SamplingParams
from services.engine.kv.pool import BlockPool
from services.engine.runner import Runner, SampleRequest, StepItem

_MOST_ITEMS: Final = 4096
"""Sequences in one measured step: far above what an engine batches, far below what would exhaust the process."""

Timed = Callable[[Callable[[], object]], float]
"""Runs a step and says how many seconds it took, the emulation of a slower device included."""


class MeasurementRefused(PdmeshError):
    """The step cannot be measured, now or at all; the message says why and what to do."""


class StepMeter:
    """Measures steps on a runner that has no job. Every block taken is given back, however it ends.

    `interrupted` is asked between two repetitions: a job that has come must not wait longer.
    """

    def __init__(self, runner: Runner, pool: BlockPool, timed: Timed, interrupted: Callable[[], bool]) -> None:
        self._runner = runner
        self._pool = pool
        self._timed = timed
        self._interrupted = interrupted
        # Any tokens do, since none of them decides how long a step takes; the same ones make failures repeatable.
        self._random = random.Random(0)

    def seconds(self, step: Step, repeats: int) -> tuple[float, ...]:
        """The seconds of each of `repeats` (at least 1) runs of `step`, after one that does not count.

        Raises MeasurementRefused.
        """
        spans = _spans(step, self._runner.context_length)
        size = self._runner.layout.block_size
        needed = sum(-(-stop // size) for _, stop in spans)
        if needed > self._pool.num_free:
            raise MeasurementRefused(
                f"{step.shape} needs {needed} blocks of {size} tokens, and {self._pool.num_free} are free; "
                "measure smaller steps or raise kv_memory"
            )
        blocks = self._pool.allocate(needed)
        try:
            self._touch(blocks)
            return self._run(step, list(self._items(spans, blocks)), repeats)
        finally:
            self._pool.release(blocks)

    def _touch(self, blocks: list[int]) -> None:
        """Write every block: memory never written to is not there yet on a CPU, and reads of it cost less."""
        for block in blocks[1:]:
            self._runner.copy_block(blocks[0], block)

    def _items(self, spans: list[tuple[int, int]], blocks: list[int]) -> Iterator[StepItem]:
        """An item for each (start, stop), on blocks of its own. Decodes sample greedily, parts of prompts not."""
        size, vocab = self._runner.layout.block_size, self._runner.vocab_size
        taken = 0
        for start, stop in spans:
            own = blocks[taken : (taken := taken + -(-stop // size))]
            tokens = [self._random.randrange(vocab) for _ in range(start, stop)]
            is_decode = len(tokens) == 1
            yield StepItem(tokens=tokens, start=start, blocks=own, sample=_greedy(stop) if is_decode else None)

    def _run(self, step: Step, items: list[StepItem], repeats: int) -> tuple[float, ...]:
        # A prefill instance announces each layer, for which an accelerator is waited for.
        on_layer = _announced if step.is_prefill else None
        seconds: list[float] = []
        for _ in range(1 + repeats):
            if self._interrupted():
                raise MeasurementRefused(
                    "the instance was given something to do meanwhile; measure again when it idles"
                )
            try:
                seconds.append(self._timed(lambda: self._runner.run(items, on_layer)))
            except Exception as error:  # the device's own errors are of any type; nothing else ends with them
                raise MeasurementRefused(f"{step.shape} cannot be computed: {type(error).__name__}: {error}") from error
        return tuple(seconds[1:])


def _announced(_: int) -> None:
    pass


def _greedy(position: int) -> SampleRequest:
    return SampleRequest(params=SamplingParams(temperature=0.0), choices=(0,), position=position, prompt=(), output=())


def _spans(step: Step, context_length: int) -> list[tuple[int, int]]:
    """(start, stop) of each item: the chunk first, then the decodes with the context shared evenly among them."""
    shape = step.shape
    if (problem := _problem(step)) is not None:
        raise MeasurementRefused(f"{shape} is no {'whole prompt alone' if step.is_prefill else 'step'}: {problem}")
    spans = [(shape.chunk_context, shape.chunk_context + shape.chunk_tokens)] if shape.chunk_tokens else []
    if shape.decodes:
        each, more = divmod(shape.decode_context, shape.decodes)
        spans += [(each + (index < more), each + (index < more) + 1) for index in range(shape.decodes)]
    longest = max(stop for _, stop in spans)
    if longest > context_length:
        raise MeasurementRefused(f"{shape} has a sequence of {longest} tokens; the model's context is {context_length}")
    return spans


def _problem(step: Step) -> str | None:
    shape = step.shape
    if min(shape.chunk_tokens, shape.chunk_context, shape.decodes, shape.decode_context) < 0:
        return "a number below zero"
    if shape.is_empty():
        return "it computes nothing"
    if shape.chunk_tokens == 1:
        return "one token of a prompt is computed as a decode"
    if shape.decodes > _MOST_ITEMS:
        return f"more than {_MOST_ITEMS} decodes"
    if (shape.chunk_context and not shape.chunk_tokens) or (shape.decode_context and not shape.decodes):
        return "a context of nothing that is computed"
    if step.is_prefill and shape != StepShape(chunk_tokens=shape.chunk_tokens):
        return "it may have chunk_tokens only"
    return None
