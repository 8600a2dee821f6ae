"""How likely a model finds tokens that are there already: the logprobs of a prompt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from common.messages.sampling import TokenLogprobs
from services.engine.runner import Sampled, ScoreRequest, StepItem
from services.engine.step_plan import StepPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_LOGITS: Final = 1 << 22
"""Made at once: 16 MiB in float32, and about three times that with what is made of them. A long prompt has gigabytes
of logits, so that they are made, and read, a few rows at a time."""


class Hidden:
    """What the body of the model said in one forward: filled by `PromptScorer.listen`."""

    output: Any = None


class PromptScorer:
    """Scores the rows of a forward of `model` without keeping their logits.

    The model's own head is run again on slices of what its body said, through the model's own forward: whatever a model
    does to its logits (Gemma 2 caps them, Cohere and Granite scale them) is done to these, too.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._prefix = model.base_model_prefix

    def can_score(self) -> bool:
        """Whether the model asks its body as a whole; OPT, for one, asks a part of it, which is not seen here."""
        body = self._model.base_model
        return body is not self._model and self._model.get_decoder() is body

    @contextmanager
    def listen(self) -> Iterator[Hidden]:
        """While the block runs one forward, keep what the body of the model says; only where `can_score`."""
        hidden = Hidden()

        def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            hidden.output = output

        handle = self._model.base_model.register_forward_hook(keep)
        try:
            yield hidden
        finally:
            handle.remove()

    def scores(self, hidden: Hidden, plan: StepPlan, items: Sequence[StepItem]) -> list[tuple[Sampled, ...]]:
        """For each item, its tokens to be scored with their logprobs. Call it in inference mode."""
        scored: list[tuple[Sampled, ...]] = []
        for item, last_row in zip(items, plan.last_rows, strict=True):
            first_row = last_row - len(item.tokens) + 1
            scored.append(() if item.score is None else self._item_scores(hidden, first_row, item.score))
        return scored

    def _item_scores(self, hidden: Hidden, first_row: int, request: ScoreRequest) -> tuple[Sampled, ...]:
        states = hidden.output.last_hidden_state
        found: list[Sampled] = []
        vocab_size = int(self._model.config.get_text_config(decoder=True).vocab_size)
        size = max(1, _MOST_LOGITS // vocab_size)
        for start in range(0, len(request.tokens), size):
            tokens = request.tokens[start : start + size]
            first = first_row + start
            logits = self._head(type(hidden.output)(last_hidden_state=states[:, first : first + len(tokens)]))
            found += _read(logits, tokens, request.top)
        return tuple(found)

    def _head(self, output: Any) -> torch.Tensor:
        """The logits [rows, vocabulary], float32, that the model makes of what its body said."""
        model, prefix = self._model, self._prefix
        body = getattr(model, prefix)
        states = output.last_hidden_state
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        setattr(model, prefix, _Said(output))
        try:
            answer = model(input_ids=ids, use_cache=False)
        finally:
            setattr(model, prefix, body)
        logits: torch.Tensor = answer.logits[0]
        return logits.float()


class _Said(torch.nn.Module):
    """Stands in for the body of a model, and says what it said before."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self._output


def _read(logits: torch.Tensor, tokens: Sequence[int], top: int) -> Iterator[Sampled]:
    """The logprobs of tokens[i] in row i, with the `top` likeliest tokens there."""
    logprobs = torch.log_softmax(logits, dim=-1)
    index = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    chosen = logprobs.gather(1, index.unsqueeze(1))[:, 0].tolist()
    best, ids = (part.tolist() for part in logprobs.topk(min(top, logprobs.shape[1]), dim=-1))
    for token, logprob, others, values in zip(tokens, chosen, ids, best, strict=True):
        yield Sampled(token=token, logprobs=TokenLogprobs(logprob, tuple(zip(others, values, strict=True))))
