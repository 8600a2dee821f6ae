"""Lengths of which only a mean and percentiles are known: a lognormal distribution with that very mean."""

from collections.abc import Iterator
from math import exp, log
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import ndtri

from services.planner.files.plan_keys import LengthKeys
from services.simulator.workload.requests import MAX_TOKENS, TracedRequest, Workload
from services.simulator.workload.seeds import Purpose, generator

_Z99: Final = float(ndtri(0.99))
WIDEST: Final = exp(_Z99**2 / 2)
"""The largest P99 over mean that a lognormal has, about 15: with σ = z99, for ln(P99 / mean) = z99·σ - σ²/2."""
_FAR_OFF: Final = 1.5
"""The factor between a percentile and the fitted one above which the distribution is not a lognormal."""


def sigma_of(lengths: LengthKeys) -> float:
    """The σ of ln X, where E[X] is `mean` and the percentiles are as near as can be; 0 without percentiles.

    With μ = ln mean - σ²/2 the q-quantile is exp(μ + z_q·σ).  One percentile is met exactly (P99 by the smaller of the
    two σ), of two the squares of the logarithms of both errors are least.
    """
    wanted = _percentiles(lengths)
    if not wanted:
        return 0.0

    def misfit(sigma: float) -> float:
        return sum((log(_quantile(lengths.mean, sigma, z)) - log(value)) ** 2 for _, z, value in wanted)

    return float(minimize_scalar(misfit, bounds=(0.0, _Z99), method="bounded", options={"xatol": 1e-9}).x)


def length_problems(path: str, lengths: LengthKeys) -> Iterator[str]:
    """Why no lognormal has these figures."""
    mean, p50, p99 = lengths.mean, lengths.p50, lengths.p99
    if p50 is not None and p50 > mean:
        yield f"{path}.p50 is {p50:g}, above the mean of {mean:g}; a lognormal has its median below its mean"
    if p99 is not None and not mean <= p99 <= WIDEST * mean:
        yield (
            f"{path}.p99 is {p99:g} with a mean of {mean:g}; a lognormal has one from {mean:g} to {WIDEST * mean:.0f}: "
            "correct the figures, or give a trace"
        )
    elif p50 is not None and p99 is not None and p50 <= mean:
        sigma = sigma_of(lengths)
        for name, z, value in _percentiles(lengths):
            found = _quantile(mean, sigma, z)
            if max(found / value, value / found) > _FAR_OFF:
                yield (
                    f"{path}.{name} is {value:g}, and the lognormal nearest to mean, p50 and p99 has {found:.0f}; "
                    "leave out p50 or p99, or give a trace"
                )


def lognormal_workload(prompt: LengthKeys, output: LengthKeys, requests: int, seed: int) -> Workload:
    """`requests` requests without arrivals; prompts and outputs are drawn apart. Equal for equal arguments.

    The lengths are the quantiles in the middle of so many equal parts of the distribution, in random order, scaled to
    the exact mean: the tail beyond the last part would be missing from it.
    """
    random = generator(seed, Purpose.LENGTHS)
    prompts, outputs = (_drawn(lengths, requests, random) for lengths in (prompt, output))
    return Workload(
        name="lognormal",
        source=f"lognormal lengths, seed {seed}; prompts: {_words(prompt)}; outputs: {_words(output)}",
        requests=tuple(
            TracedRequest(0.0, prompt_tokens, output_tokens)
            for prompt_tokens, output_tokens in zip(prompts.tolist(), outputs.tolist(), strict=True)
        ),
    )


def _drawn(lengths: LengthKeys, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    middles = (np.arange(count) + 0.5) / count
    drawn = np.exp(sigma_of(lengths) * ndtri(middles))
    tokens = np.rint(drawn * (lengths.mean / drawn.mean()))
    return random.permutation(np.clip(tokens, 1, MAX_TOKENS).astype(np.int64))


def _quantile(mean: float, sigma: float, z: float) -> float:
    return mean * exp(z * sigma - sigma**2 / 2)


def _percentiles(lengths: LengthKeys) -> list[tuple[str, float, float]]:
    """Name, standard score and value of those given."""
    given = (("p50", 0.0, lengths.p50), ("p99", _Z99, lengths.p99))
    return [(name, z, value) for name, z, value in given if value is not None]


def _words(lengths: LengthKeys) -> str:
    return ", ".join([f"mean {lengths.mean:g}", *(f"{name} {value:g}" for name, _, value in _percentiles(lengths))])
