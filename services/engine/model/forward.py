"""One forward of a bound model over paged KV, as its own code computes it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from services.engine.kv.paged_kv import PagedKV
from services.engine.model.attention import PagedStep
from services.engine.native.kernels import Kernels
from services.engine.step_plan import StepPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def forward(
    model: "PreTrainedModel",
    kv: PagedKV,
    plan: StepPlan,
    rows: Sequence[int],
    on_layer: Callable[[int], None] | None = None,
    kernels: Kernels | None = None,
) -> torch.Tensor:
    """Logits of these rows of `plan`, [len(rows), vocabulary], float32; writes the KV of all rows."""
    output = model(
        input_ids=torch.tensor([plan.tokens], device=kv.device),
        position_ids=torch.tensor([plan.positions], device=kv.device),
        use_cache=False,
        logits_to_keep=torch.tensor(rows, dtype=torch.int64, device=kv.device),
        paged_step=PagedStep(kv, plan, on_layer, kernels),
    )
    logits: torch.Tensor = output.logits[0]
    return logits.float()
