"""Prompts with the block structure of a Mooncake trace, scaled to a small machine, and what recurs of them. Pure."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from services.bench.load.stream import LoadRequest
from services.simulator.workload.errors import WorkloadError
from services.simulator.workload.requests import TracedRequest, Workload

TRACE_BLOCK: Final = 512
"""Tokens that one of the trace's hash ids names."""


class Scale(msgspec.Struct, frozen=True):
    """How the trace is made smaller: every length is divided by 512 / `block_tokens`."""

    block_tokens: int = 8
    """Tokens that a hash id becomes."""
    most_tokens: int = 512
    """Requests with more prompt and output than that are left out."""

    def length(self, tokens: int) -> int:
        """At least 1."""
        return max(1, tokens * self.block_tokens // TRACE_BLOCK)


class ScaledRequest(msgspec.Struct, frozen=True):
    """One request of the slice."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]
    """One for each `block_tokens` of the prompt, the last one for what is left."""


def scaled_slice(workload: Workload, count: int, scale: Scale) -> tuple[ScaledRequest, ...]:
    """The first `count` requests that are short enough. Raises WorkloadError for a trace without hash ids, or where
    there are not so many.
    """
    chosen: list[ScaledRequest] = []
    for request in workload.requests:
        if not request.hash_ids:
            raise WorkloadError(f"{workload.name!r} does not say which blocks its prompts share; give a Mooncake trace")
        small = _scaled(request, scale)
        if small.prompt_tokens + small.output_tokens <= scale.most_tokens:
            chosen.append(small)
        if len(chosen) == count:
            return tuple(chosen)
    found, most = len(chosen), scale.most_tokens
    raise WorkloadError(f"{workload.name!r} has {found} requests of at most {most} tokens when scaled; ask for less")


def _scaled(request: TracedRequest, scale: Scale) -> ScaledRequest:
    prompt = min(scale.length(request.prompt_tokens), len(request.hash_ids) * scale.block_tokens)
    blocks = -(-prompt // scale.block_tokens)
    return ScaledRequest(request.arrival_s, prompt, scale.length(request.output_tokens), request.hash_ids[:blocks])


def load_of(
    slice_: Sequence[ScaledRequest], scale: Scale, vocab: range, rate: float, seed: int
) -> tuple[LoadRequest, ...]:
    """The slice as requests of tokens: equal hash ids are equal tokens, and another seed gives other ones, so that a
    round finds nothing of the round before. The recorded times are stretched to `rate` requests a second; several
    at one time are spread evenly until the next.
    """
    random = np.random.default_rng(seed)
    names = dict.fromkeys(name for request in slice_ for name in request.hash_ids)
    tokens: Mapping[int, list[int]] = {
        name: random.integers(vocab.start, vocab.stop, scale.block_tokens).tolist() for name in names
    }
    times = _times(slice_, rate)
    return tuple(
        LoadRequest(
            at_s,
            tuple([token for name in request.hash_ids for token in tokens[name]][: request.prompt_tokens]),
            request.output_tokens,
        )
        for at_s, request in zip(times, slice_, strict=True)
    )


def _times(slice_: Sequence[ScaledRequest], rate: float) -> list[float]:
    """The trace's clock ticks seldom: requests of one tick are spread to the next one."""
    recorded = [request.at_s for request in slice_]
    ticks = sorted(set(recorded))
    following = dict(zip(ticks, [*ticks[1:], 2 * ticks[-1] - ticks[-2] if len(ticks) > 1 else 1.0], strict=True))
    seen: dict[float, int] = {}
    times: list[float] = []
    for at_s in recorded:
        index = seen[at_s] = seen.get(at_s, -1) + 1
        times.append(at_s + (following[at_s] - at_s) * index / recorded.count(at_s))
    span = times[-1] - times[0] or 1.0
    return [(at_s - times[0]) * (len(slice_) - 1) / rate / span for at_s in times]


def bound_of(requests: Sequence[LoadRequest], block_size: int, blocks: int | None = None) -> float:
    """The share of all prompt tokens that a cache would hold when each request comes, were those before it served: in
    whole blocks of `block_size`, and never the last token of a prompt. It has so many `blocks`, which answers fill
    too, and forgets the one longest unused, of one request the end before the beginning; None: it has no end.
    """
    known: OrderedDict[Hashable, None] = OrderedDict()
    held = 0
    for request in requests:
        prompt = request.prompt
        beginnings = [prompt[:stop] for stop in range(block_size, len(prompt) + 1, block_size)]
        for beginning in beginnings:
            if len(beginning) == len(prompt) or beginning not in known:
                break
            held += block_size
        # A cache without end has no use for answers, of which nobody's prompt is made.
        answer = () if blocks is None else ((id(request), i) for i in range(-(-request.output_tokens // block_size)))
        for used in (*reversed(beginnings), *answer):
            known[used] = None
            known.move_to_end(used)
        while blocks is not None and len(known) > blocks:
            known.popitem(last=False)
    return held / sum(len(request.prompt) for request in requests)
