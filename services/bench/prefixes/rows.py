"""Rows of `pdmesh bench prefixes`."""

from collections.abc import Mapping, Sequence

import msgspec

from services.bench.load.run import figures_of
from services.bench.load.stream import LoadRequest, StreamTimes
from services.bench.prefixes.meshes import Variant
from services.bench.repeats import Measured
from services.bench.report import Row, Where

_MEASURED = ("ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "tbt_p50_s", "tbt_p99_s", "throughput_rps")


class Slice(msgspec.Struct, frozen=True):
    """What every variant served."""

    requests: Sequence[LoadRequest]
    rate_rps: float
    bound: float
    """Of the hit rate."""
    lru_bounds: Mapping[str, float]
    """The same for one cache of the size that a system has, which forgets what was longest unused."""
    model: str
    dtype: str
    kv_memory: str


def hit_rate(requests: Sequence[LoadRequest], answers: Sequence[StreamTimes]) -> float:
    """Tokens that nobody computed, over all prompt tokens."""
    return sum(answer.cached_tokens for answer in answers) / sum(len(request.prompt) for request in requests)


def variant_rows(samples: Mapping[Variant, Sequence[list[StreamTimes]]], slice_: Slice) -> list[Row]:
    """One for each variant."""
    return [_row(variant, rounds, slice_) for variant, rounds in samples.items()]


def _row(variant: Variant, rounds: Sequence[list[StreamTimes]], slice_: Slice) -> Row:
    figures = [figures_of(answers) for answers in rounds]
    hits = Measured.of(hit_rate(slice_.requests, answers) for answers in rounds)
    row: dict[str, str | int | float | bool | None] = {
        "where": Where.REAL,
        "repeats": len(rounds),
        "system": variant.system,
        "prefix_cache": variant.prefix_cache,
        "model": slice_.model,
        "dtype": slice_.dtype,
        "kv_memory": slice_.kv_memory,
        "requests": len(slice_.requests),
        "prompt_tokens": sum(len(request.prompt) for request in slice_.requests),
        "rate_rps": slice_.rate_rps,
        "hit_rate_bound": slice_.bound,
        "hit_rate_lru_bound": slice_.lru_bounds[variant.system],
    }
    row |= hits.columns("hit_rate")
    for name in _MEASURED:
        row |= Measured.of(float(getattr(figure, name)) for figure in figures).columns(name)
    return row


def prefixes_summary(samples: Mapping[Variant, Sequence[list[StreamTimes]]], slice_: Slice) -> dict[str, float]:
    """For each system: hits over the bound, and the mean time to the first token with the cache over that without."""
    summary = {"hit_rate_bound": slice_.bound}
    for system in dict.fromkeys(variant.system for variant in samples):
        cached, plain = (samples[Variant(system, is_on)] for is_on in (True, False))
        hits = Measured.of(hit_rate(slice_.requests, answers) for answers in cached)
        summary[f"{system}_hit_rate"] = hits.median
        if slice_.bound > 0:
            summary[f"{system}_hit_rate_over_bound"] = hits.median / slice_.bound
        if slice_.lru_bounds[system] > 0:
            summary[f"{system}_hit_rate_over_lru_bound"] = hits.median / slice_.lru_bounds[system]
        ttft = [Measured.of(figures_of(answers).ttft_mean_s for answers in rounds) for rounds in (cached, plain)]
        summary[f"{system}_ttft_over_without"] = ttft[0].over(ttft[1]).median
    return summary
