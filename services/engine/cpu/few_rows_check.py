"""Does a whole step in C++ give what the model itself gives? A few tokens over a few blocks, before it is trusted."""

import itertools
import logging
from typing import TYPE_CHECKING, Final

import torch

from services.engine.cpu.few_rows import FewRows, model_parts
from services.engine.kv.paged_kv import PagedKV
from services.engine.model.forward import forward
from services.engine.native.kernels import Kernels
from services.engine.runner import StepItem
from services.engine.step_plan import plan_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

_CONTEXTS: Final = (17, 0, 4)
"""Tokens before each decode."""
_TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference allowed, relative to the largest number of the tensor."""


def proved(model: "PreTrainedModel", kv: PagedKV, kernels: Kernels) -> FewRows | None:
    """Steps of few rows of `model` over `kv`; None where the model is of another kind, or where the proof fails.

    `model` is bound and quickened. `kv` is not touched: the proof has a small cache of its own.
    """
    parts = model_parts(model)
    if parts is None or not kernels.most_rows(torch.get_num_threads()):
        return None
    own = PagedKV(kv.layout, sum(kv.layout.blocks_for(count + 1) for count in _CONTEXTS))
    with torch.inference_mode():
        if not _agrees(model, own, kernels, FewRows(parts, own, kernels)):
            _log.warning("whole steps in C++ do not agree with the model, layers are computed one by one")
            return None
        return FewRows(parts, kv, kernels)


def _agrees(model: "PreTrainedModel", kv: PagedKV, kernels: Kernels, few_rows: FewRows) -> bool:
    """Three decodes, then one, over contexts that the model has written, by both."""
    prompts, decodes = _items(kv, model)
    forward(model, kv, plan_step(prompts, kv.layout.block_size), [], None, kernels)
    for items in (decodes, decodes[:1]):
        plan = plan_step(items, kv.layout.block_size)
        expected = (forward(model, kv, plan, plan.last_rows, None, kernels), _content(kv))
        for layer in range(kv.layout.layers.start, kv.layout.layers.stop):
            kv.clear(layer, kv.token_rows(plan.slots))
        actual = (few_rows.logits(plan, plan.last_rows), _content(kv))
        if not all(_close(one, other, kv.dtype) for one, other in zip(actual, expected, strict=True)):
            return False
    return True


def _items(kv: PagedKV, model: "PreTrainedModel") -> tuple[list[StepItem], list[StepItem]]:
    """The contexts of _CONTEXTS that are not empty, and a decode for each."""
    made = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompts, decodes = [], []
    free = iter(range(kv.num_blocks))
    for count in _CONTEXTS:
        tokens = torch.randint(vocabulary, (count + 1,), generator=made).tolist()
        blocks = tuple(itertools.islice(free, kv.layout.blocks_for(count + 1)))
        if count:
            prompts.append(StepItem(tokens=tokens[:-1], start=0, blocks=blocks))
        decodes.append(StepItem(tokens=tokens[-1:], start=count, blocks=blocks))
    return prompts, decodes


def _content(kv: PagedKV) -> torch.Tensor:
    return torch.stack((*kv.keys, *kv.values))


def _close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((actual - expected).abs().max() <= _TOLERANCE[dtype] * expected.abs().max())
