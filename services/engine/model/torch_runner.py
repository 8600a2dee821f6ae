"""The runner of real models: one forward of a Hugging Face causal LM over paged KV."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from common.errors import ModelError
from common.kv.layout import KVDType, KVOrder
from services.engine.cpu.few_rows import FewRows
from services.engine.cpu.few_rows_check import proved
from services.engine.cpu.quicken import quicken
from services.engine.kv.paged_kv import PagedKV, num_blocks_for
from services.engine.model.binding import bind, context_length_of, layout_of
from services.engine.model.forward import forward
from services.engine.model.prompt_scores import PromptScorer
from services.engine.native.kernels import Kernels
from services.engine.native.self_check import trusted
from services.engine.runner import Runner, Sampled, SampleRequest, StepItem
from services.engine.step_plan import StepPlan, plan_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LogitsSampler(Protocol):
    """Chooses tokens from logits."""

    def sample(self, logits: torch.Tensor, requests: Sequence[SampleRequest]) -> list[tuple[Sampled, ...]]:
        """For row i of `logits` [requests, vocabulary], float32: one Sampled for each choice of requests[i]."""
        ...


class TorchRunner(Runner):
    """Runs `model` (already bound, see `build_runner`) over `kv`, which it owns. Any torch device."""

    def __init__(
        self,
        model: "PreTrainedModel",
        kv: PagedKV,
        sampler: LogitsSampler,
        kernels: Kernels | None = None,
        few_rows: FewRows | None = None,
    ) -> None:
        """`few_rows`: what computes the steps that it serves, in place of the model."""
        self.kv = kv
        self.layout = kv.layout
        self.num_blocks = kv.num_blocks
        self.context_length = context_length_of(model.config)
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        self._model = model
        self._scorer = PromptScorer(model)
        self.scores_prompts = self._scorer.can_score()
        self._sampler = sampler
        self._kernels = kernels
        self._few_rows = few_rows

    def run(
        self, items: Sequence[StepItem], on_layer: Callable[[int], None] | None = None
    ) -> list[tuple[Sampled, ...]]:
        """See Runner. Raises ValueError for an item that cannot be computed; then nothing has been."""
        if not items:
            return []
        plan = plan_step(items, self.layout.block_size)
        self._check_tokens(plan.tokens)
        with torch.inference_mode():
            if all(item.score is None for item in items):
                if self._few_rows is not None and on_layer is None and self._few_rows.serves(plan):
                    return self._sample(items, self._few_rows.logits(plan, _sampled_rows(items, plan)))
                return self._sample(items, self._forward(items, plan, on_layer))
            with self._scorer.listen() as hidden:
                logits = self._forward(items, plan, on_layer)
            scored = self._scorer.scores(hidden, plan, items)
            return [known + new for known, new in zip(scored, self._sample(items, logits), strict=True)]

    def copy_block(self, source: int, target: int) -> None:
        """See Runner."""
        self.kv.copy_block(source, target)

    def _sample(self, items: Sequence[StepItem], logits: torch.Tensor) -> list[tuple[Sampled, ...]]:
        requests = [item.sample for item in items if item.sample is not None]
        if not requests and self.kv.device.type != "cpu":
            # Sampling waits for the device. Without it a step would be timed, and its errors seen, in the next one.
            torch.accelerator.current_stream(self.kv.device).synchronize()
        sampled = iter(self._sampler.sample(logits, requests) if requests else ())
        return [() if item.sample is None else next(sampled) for item in items]

    def _forward(
        self, items: Sequence[StepItem], plan: StepPlan, on_layer: Callable[[int], None] | None
    ) -> torch.Tensor:
        """Logits after each item that samples, in order: [samples, vocabulary], float32."""
        return forward(self._model, self.kv, plan, _sampled_rows(items, plan), on_layer, self._kernels)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        # On an accelerator an id beyond the embedding is not an exception but the end of the process's context.
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            wrong = next(token for token in tokens if not 0 <= token < self.vocab_size)
            raise ValueError(f"token id {wrong!r}; this model's are in [0, {self.vocab_size})")


def _sampled_rows(items: Sequence[StepItem], plan: StepPlan) -> list[int]:
    return [row for row, item in zip(plan.last_rows, items, strict=True) if item.sample is not None]


def build_runner(
    model: "PreTrainedModel",
    sampler: LogitsSampler,
    *,
    fingerprint: str,
    block_size: int,
    order: KVOrder,
    kv_memory_bytes: int,
    kernels: Kernels | None = None,
) -> TorchRunner:
    """A runner for a loaded model, in the model's own dtype and on its device, with a KV cache of that many bytes.

    On a CPU the model's layers are replaced by faster ones, the fastest with `kernels`; `model` is of no use to others.

    Raises ModelError when the model cannot be served exactly, ConfigError when not one block fits.
    """
    name = str(model.dtype).removeprefix("torch.")
    if name not in (KVDType.FLOAT32, KVDType.BFLOAT16, KVDType.FLOAT16):
        raise ModelError(f"a model of dtype {name!r}; this engine computes in float32, bfloat16 or float16")
    layout = layout_of(
        model.config,
        fingerprint=fingerprint,
        dtype=KVDType(name),
        block_size=block_size,
        order=order,
        device=str(model.device),
    )
    bind(model, layout)
    kv = PagedKV(layout, num_blocks_for(layout, kv_memory_bytes))
    kernels = trusted(kernels, kv)
    if quicken(model, kernels):
        # The same proof again, for what the layers have become.
        bind(model, layout)
    few_rows = None if kernels is None else proved(model, kv, kernels)
    return TorchRunner(model, kv, sampler, kernels, few_rows)
