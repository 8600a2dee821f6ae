"""An engine without a model: tokens that depend on nothing but the context, read back from the KV cache.

Every token writes small whole numbers made of (token, position, layer, head, dim) into its slot, and every sample is
a hash of what the blocks then hold for the whole context.  A block lost, doubled or misplaced on its way through the
mesh therefore changes the answer, while a right mesh gives the same answer for any split, block size and order.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import xxhash

from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.sampling import SamplingParams, TokenLogprobs
from services.engine.kv.paged_kv import PagedKV
from services.engine.runner import Runner, Sampled, SampleRequest, StepItem
from services.engine.step_plan import slots_of

_VALUES = 1_000_003
"""Values are in [1, this]: exact in float32, and never the zero of an unwritten slot."""


def deterministic_layout(
    *,
    block_size: int = 16,
    order: KVOrder = KVOrder.NHD,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 4,
    model: str = "deterministic",
) -> KVLayout:
    """A tiny float32 layout on the CPU."""
    return KVLayout(
        model=model,
        dtype=KVDType.FLOAT32,
        block_size=block_size,
        order=order,
        layers=Interval(0, layers),
        heads=Interval(0, heads),
        head_dim=head_dim,
    )


class DeterministicRunner(Runner):
    """Honours choices, seeds (when temperature > 0), forbidden and allowed tokens, and logprobs; ignores other
    sampling parameters.

    Faults: every step takes `step_seconds` longer; step number `fail_at_step` (from 0) raises RuntimeError before it
    touches anything; `gate` is called before each step, and may block, or raise in its place.
    """

    def __init__(
        self,
        layout: KVLayout | None = None,
        num_blocks: int = 1024,
        *,
        vocab_size: int = 256,
        context_length: int = 4096,
        step_seconds: float = 0.0,
        fail_at_step: int | None = None,
        gate: Callable[[], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.layout = layout or deterministic_layout()
        self.kv = PagedKV(self.layout, num_blocks)
        self.num_blocks = num_blocks
        self.vocab_size = vocab_size
        self.scores_prompts = True
        self.context_length = context_length
        self.steps = 0
        """Steps begun."""
        self._step_seconds = step_seconds
        self._fail_at_step = fail_at_step
        self._gate = gate
        self._sleep = sleep

    def run(
        self, items: Sequence[StepItem], on_layer: Callable[[int], None] | None = None
    ) -> list[tuple[Sampled, ...]]:
        """See Runner."""
        if self._gate is not None:
            self._gate()
        step, self.steps = self.steps, self.steps + 1
        if step == self._fail_at_step:
            raise RuntimeError(f"step {step} fails, as it was told to")
        if self._step_seconds > 0:
            self._sleep(self._step_seconds)
        if not items:
            return []
        self._write(items, on_layer)
        return [(*self._scores(item), *self._sample(item)) for item in items]

    def copy_block(self, source: int, target: int) -> None:
        """See Runner."""
        self.kv.copy_block(source, target)

    def _write(self, items: Sequence[StepItem], on_layer: Callable[[int], None] | None) -> None:
        size = self.layout.block_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for item in items:
            stop = item.start + len(item.tokens)
            tokens += item.tokens
            positions += range(item.start, stop)
            slots += slots_of(item.blocks, item.start, stop, size)
        rows = self.kv.token_rows(slots)
        token, position = torch.tensor(tokens), torch.tensor(positions)
        for layer in range(self.layout.layers.start, self.layout.layers.stop):
            key, value = (self._values(token, position, layer, part) for part in (0, 1))
            self.kv.write(layer, key, value, rows)
            if on_layer is not None:
                on_layer(layer)

    def _values(self, token: torch.Tensor, position: torch.Tensor, layer: int, part: int) -> torch.Tensor:
        """[heads, tokens, head_dim]: whole numbers that differ between neighbours in every coordinate."""
        heads = torch.arange(self.layout.heads.start, self.layout.heads.stop).view(-1, 1, 1)
        dims = torch.arange(self.layout.head_dim)
        place = ((layer * 2 + part) * 1_009 + heads * 9_176 + dims * 77_377) * 7_919
        return (token * 52_711 + position * 15_485_863 + 1).view(-1, 1).add(place).remainder(_VALUES).add(1).float()

    def _scores(self, item: StepItem) -> Iterator[Sampled]:
        """Made up of the token, the one before it and its place."""
        if (request := item.score) is None:
            return
        for index, token in enumerate(request.tokens):
            place = f"{item.start + index}:{item.tokens[index]}:{token}"
            chosen = -(1 + xxhash.xxh3_64_intdigest(place.encode()) % 1024) / 128
            top = tuple(((token + rank) % self.vocab_size, chosen - rank) for rank in range(request.top))
            yield Sampled(token=token, logprobs=TokenLogprobs(chosen, top))

    def _sample(self, item: StepItem) -> tuple[Sampled, ...]:
        if item.sample is None:
            return ()
        context = self._context_hash(item.blocks, item.start + len(item.tokens))
        return tuple(self._choose(context, item.sample, choice) for choice in item.sample.choices)

    def _context_hash(self, blocks: Sequence[int], length: int) -> int:
        """Hash of the KV of tokens [0, length) as the blocks hold it now, the same for every block size and order."""
        layout = self.layout
        table = [blocks[: layout.blocks_for(length)]]
        rows = self.kv.context_rows(table)
        key = torch.empty(1, len(layout.heads), len(table[0]) * layout.block_size, layout.head_dim)
        value = torch.empty_like(key)
        state = xxhash.xxh3_64()
        for layer in range(layout.layers.start, layout.layers.stop):
            self.kv.gather(layer, rows, key, value)
            for part in (key, value):
                state.update(part[0, :, :length].contiguous().numpy().tobytes())
        return state.intdigest()

    def _choose(self, context: int, request: SampleRequest, choice: int) -> Sampled:
        params = request.params
        noise = f":{params.seed}:{choice}:{request.position}" if params.temperature > 0 else ""
        first = xxhash.xxh3_64_intdigest(f"{context}{noise}".encode()) % self.vocab_size
        candidates = (candidate % self.vocab_size for candidate in range(first, first + self.vocab_size))
        token = next((candidate for candidate in candidates if _can_be(candidate, request)), None)
        if token is None:
            raise ValueError(f"all {self.vocab_size} tokens are forbidden; at least one must be left")
        return Sampled(token=token, logprobs=self._logprobs(token, params))

    def _logprobs(self, token: int, params: SamplingParams) -> TokenLogprobs | None:
        """A made-up distribution: the chosen token has 1/2, the next id 1/4, and so on."""
        if params.logprobs is None:
            return None
        top = tuple(
            ((token + rank) % self.vocab_size, -(rank + 1) * math.log(2))
            for rank in range(min(params.logprobs, self.vocab_size))
        )
        return TokenLogprobs(chosen=-math.log(2), top=top)


def _can_be(token: int, request: SampleRequest) -> bool:
    is_allowed = request.allowed is None or (token < len(request.allowed) and bool(request.allowed[token]))
    return is_allowed and token not in request.forbidden
