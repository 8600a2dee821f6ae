"""What the engine core needs from a model on a device: one forward over a mixed batch, nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from common.kv.layout import KVLayout
from common.messages.sampling import SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from services.engine.kv.paged_kv import PagedKV


class SampleRequest(msgspec.Struct, frozen=True):
    """Sample after the last token of a step item, once for each choice in `choices`.

    The noise is keyed by (params.seed, choice, position, token id), position being the index in the whole sequence
    of the token to be sampled (prompt length + number of tokens emitted so far).
    """

    params: SamplingParams
    choices: tuple[int, ...]
    position: int
    prompt: Sequence[int]
    output: Sequence[int]
    """Tokens emitted so far: with the prompt, what the penalties look at."""
    forbidden: tuple[int, ...] = ()
    """Tokens that cannot be sampled now (stop tokens before min_tokens)."""
    allowed: bytes | None = None
    """One byte for each token id, 0 where it cannot be sampled now (by a grammar); None: all can. At least one can."""


class ScoreRequest(msgspec.Struct, frozen=True):
    """Say how likely tokens are that are there already: tokens[j] after the j-th token of a step item."""

    tokens: Sequence[int]
    """At most as many as the item has; at least one."""
    top: int
    """How many of the likeliest tokens to name with each."""


class StepItem(msgspec.Struct, frozen=True):
    """Part of one sequence in one step: compute `tokens`, whose first is at position `start`.

    The KV of [0, start) is in `blocks`; the runner writes that of [start, start + len(tokens)).
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    sample: SampleRequest | None = None
    score: ScoreRequest | None = None


class Sampled(msgspec.Struct, frozen=True):
    """One token, sampled or scored; `logprobs` when the request asked for them."""

    token: int
    logprobs: TokenLogprobs | None = None


class Runner(ABC):
    """A model with its paged KV cache on one device. Not thread-safe: one thread calls it.

    Block ids are in [0, num_blocks); which are free is the caller's business. `run` raises whatever the device
    raises; the caller then fails the jobs of that step, and the cache stays usable.
    """

    layout: KVLayout
    kv: "PagedKV"
    """The cache itself; a transfer reads and writes its tensors, in blocks that no step touches meanwhile."""
    num_blocks: int
    context_length: int
    """Most positions of one sequence."""
    vocab_size: int
    scores_prompts: bool = False
    """Whether items may ask for a score."""

    @abstractmethod
    def run(
        self, items: Sequence[StepItem], on_layer: Callable[[int], None] | None = None
    ) -> list[tuple[Sampled, ...]]:
        """One forward over all items. Returns, for each item, one Sampled per token to be scored, then one per choice
        to be sampled, and only when everything is computed, so that its time is the step's.

        `on_layer(layer)` is called, in layer order, as soon as the KV that this step writes in `layer` can be read
        by another thread; it must be cheap.
        """

    @abstractmethod
    def copy_block(self, source: int, target: int) -> None:
        """Copy every layer of one block (a choice forks from a partly filled block)."""
