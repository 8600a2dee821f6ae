"""From logits to tokens. What is sampled for a row depends on that row and its request only, never on the batch.

Order: what a grammar allows, forbidden tokens, repetition, frequency and presence penalties, logit bias; then argmax
for greedy rows, or temperature, top_k, top_p, min_p and Gumbel-max.  To add a filter, add it to `_candidates`; to add a
penalty, to `_adjust`.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from common.messages.sampling import TokenLogprobs
from services.engine.runner import Sampled, SampleRequest
from services.engine.sampling.noise import gumbel_noise, noise_key

_NUCLEUS_GUESSES = (1024, 8192)
"""Tokens ranked first for top_p: ranking a whole vocabulary takes ten times as long and is seldom needed."""
_LEAST_MASS = sys.float_info.min
"""What top_p = 0 means: the likeliest token alone."""


class Sampler:
    """Samples the rows of a batch. Stateless: the noise of a token is a function of its key (see `SampleRequest`)."""

    def sample(self, logits: torch.Tensor, requests: Sequence[SampleRequest]) -> list[tuple[Sampled, ...]]:
        """One token per choice of each request.

        `logits` is float32 `[len(requests), vocab]` on any device; row i belongs to request i, and is not modified.
        Token ids outside the vocabulary in `logit_bias` or `forbidden` have no effect.  Exact ties go to the lowest
        id.  Waits for the device once for the batch, and more often for rows with top_k, top_p, min_p or logprobs.
        """
        if logits.shape[0] != len(requests):
            raise ValueError(f"{logits.shape[0]} rows of logits for {len(requests)} requests; each needs its own row")
        tokens = _choose(_adjusted(logits, requests), requests)
        return [
            _with_logprobs(logits[row], request.params.logprobs, chosen)
            for row, (request, chosen) in enumerate(zip(requests, tokens, strict=True))
        ]


# ---------------------------------------------------------------- penalties and bias


def _adjusted(logits: torch.Tensor, requests: Sequence[SampleRequest]) -> torch.Tensor:
    """The logits with penalties and bias applied; the very tensor given where no request asks for any."""
    rows = [row for row, request in enumerate(requests) if _is_adjusting(request)]
    if not rows:
        return logits
    adjusted = logits.clone()
    for row in rows:
        _adjust(adjusted[row], requests[row])
    return adjusted


def _is_adjusting(request: SampleRequest) -> bool:
    params = request.params
    return bool(
        request.allowed is not None
        or request.forbidden
        or params.logit_bias
        or params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
    )


def _adjust(row: torch.Tensor, request: SampleRequest) -> None:
    """Apply what `request` asks for to `row` (`[vocab]`), in place."""
    params = request.params
    if request.allowed is not None:
        row.masked_fill_(_disallowed(request.allowed, row), float("-inf"))
    forbidden = _ids_of(request.forbidden, row)
    row[forbidden] = float("-inf")
    if params.repetition_penalty != 1.0:
        seen = _ids_of(set(request.prompt).union(request.output), row)
        scores = row[seen]
        row[seen] = torch.where(scores < 0, scores * params.repetition_penalty, scores / params.repetition_penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        counts = Counter(request.output)
        _add(row, {t: -(params.frequency_penalty * n + params.presence_penalty) for t, n in counts.items()})
    _add(row, params.logit_bias)


def _disallowed(allowed: bytes, row: torch.Tensor) -> torch.Tensor:
    """Bool like `row`: the tokens that are not allowed; `allowed` may be shorter, or longer."""
    known = np.frombuffer(allowed, dtype=np.uint8)[: row.shape[0]] == 0
    missing = row.shape[0] - known.shape[0]
    return torch.from_numpy(np.pad(known, (0, missing), constant_values=True)).to(row.device)


def _add(row: torch.Tensor, amounts: dict[int, float]) -> None:
    known = {token: amount for token, amount in amounts.items() if 0 <= token < row.shape[0]}
    row[_ids_of(known, row)] += torch.tensor(list(known.values()), dtype=row.dtype, device=row.device)


def _ids_of(tokens: Iterable[int], row: torch.Tensor) -> torch.Tensor:
    """The ids that `row` has, as an index."""
    known = [token for token in tokens if 0 <= token < row.shape[0]]
    return torch.tensor(known, dtype=torch.int64, device=row.device)


# ---------------------------------------------------------------- choice


def _choose(logits: torch.Tensor, requests: Sequence[SampleRequest]) -> list[tuple[int, ...]]:
    """The tokens of each request, one per choice, from adjusted logits."""
    greedy = [row for row, request in enumerate(requests) if request.params.temperature == 0]
    drawn = [row for row, request in enumerate(requests) if request.params.temperature != 0]
    parts = [(logits[greedy] if drawn else logits).argmax(dim=-1)] if greedy else []
    parts += [_draw(logits[row], requests[row]) for row in drawn]
    # One transfer for the whole batch: on an accelerator every .tolist() waits for the device.
    tokens = iter(torch.cat(parts).tolist() if parts else ())
    chosen: list[tuple[int, ...]] = [()] * len(requests)
    for row in greedy:
        chosen[row] = (next(tokens),) * len(requests[row].choices)
    for row in drawn:
        chosen[row] = tuple(next(tokens) for _ in requests[row].choices)
    return chosen


def _draw(row: torch.Tensor, request: SampleRequest) -> torch.Tensor:
    """Gumbel-max over the tokens that pass the filters: int64 `[len(request.choices)]`."""
    scores, tokens = _candidates(row, request)
    keys = [noise_key(request.params.seed, choice, request.position) for choice in request.choices]
    return tokens[(gumbel_noise(keys, tokens) + scores).argmax(dim=-1)]


def _candidates(row: torch.Tensor, request: SampleRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Tempered scores (float64, the highest is 0) and ids of the tokens that pass top_k, top_p and min_p.

    top_k keeps the k likeliest, the lowest ids of a tie; top_p then keeps the likeliest whose probabilities, among
    those that are left, sum to p (the one that reaches p is kept); min_p keeps what has at least min_p times the
    highest probability.
    """
    params = request.params
    tokens = torch.arange(row.shape[0], device=row.device)
    if request.allowed is not None:
        # A grammar leaves few tokens: what follows is done for these alone.
        tokens = (row > float("-inf")).nonzero().flatten()
        row = row[tokens]
    # The maximum is taken off before the division, so that no temperature overflows.
    scores = (row.double() - row.max().double()) / params.temperature
    if 0 < params.top_k < row.shape[0]:
        kept = _likeliest(scores, params.top_k)[: params.top_k]
        scores, tokens = scores[kept], tokens[kept]
    if params.top_p < 1.0:
        kept = _nucleus(scores, params.top_p)
        scores, tokens = scores[kept], tokens[kept]
    if params.min_p > 0.0:
        kept = scores.exp() >= min(params.min_p, 1.0)
        scores, tokens = scores[kept], tokens[kept]
    return scores, tokens


def _nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Indices of the likeliest entries whose softmax sums to `top_p`; at least one."""
    total = scores.exp().sum()
    for guess in (*_NUCLEUS_GUESSES, scores.shape[0]):
        order = _likeliest(scores, min(guess, scores.shape[0]))
        probabilities = scores[order].exp() / total
        mass_before = probabilities.cumsum(dim=0) - probabilities
        kept = order[mass_before < max(top_p, _LEAST_MASS)]
        if kept.shape[0] < order.shape[0]:
            return kept
    return kept


def _likeliest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` highest scores and all their ties: highest first, the lowest index first in a tie."""
    # topk breaks ties as it likes, so that it gives only the threshold.
    threshold = scores.topk(count).values[-1]
    indices = (scores >= threshold).nonzero().flatten()
    return indices[scores[indices].sort(descending=True, stable=True).indices]


# ---------------------------------------------------------------- logprobs


def _with_logprobs(row: torch.Tensor, asked: int | None, tokens: tuple[int, ...]) -> tuple[Sampled, ...]:
    """The result for one row of unmodified logits; `asked` is `SamplingParams.logprobs`."""
    if asked is None:
        return tuple(Sampled(token=token) for token in tokens)
    logprobs = torch.log_softmax(row.float(), dim=-1)
    best = _likeliest(logprobs, min(asked, row.shape[0]))[:asked] if asked else _ids_of((), row)
    top = tuple(zip(best.tolist(), logprobs[best].tolist(), strict=True))
    chosen = logprobs[_ids_of(tokens, row)].tolist()
    return tuple(
        Sampled(token=token, logprobs=TokenLogprobs(chosen=logprob, top=top))
        for token, logprob in zip(tokens, chosen, strict=True)
    )
