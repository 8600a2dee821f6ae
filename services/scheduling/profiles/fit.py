"""From measured steps to the coefficients of the linear models in common.costs.models. Pure.

Least squares over relative residuals, (predicted - measured) / measured, with no coefficient below zero.

Relative, because the steps of one grid span two decades and the noise of a step time grows with the step: plain least
squares would let the longest steps choose the constants, and be wrong by whole multiples for the short steps, which
are the ones a decode instance makes most of.  Not below zero, because more work never takes less time; where noise
says otherwise the coefficient becomes 0.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from services.scheduling.profiles.profile import Fit, Point, ProfileError

_LEAST_CONDITION: Final = 1e-3
"""Below this ratio of singular values (of columns of length 1) two variables cannot be told apart in noisy points."""


class _Samples(msgspec.Struct, frozen=True):
    """The points of one model: a row of `variables` for each of `seconds`."""

    model: str
    names: tuple[str, ...]
    variables: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]


def fit_costs(points: Sequence[Point]) -> tuple[InstanceCosts, dict[str, Fit]]:
    """The costs that explain `points` best, and how well they do for each of "prefill", "mixed" and "decode".

    Raises ProfileError where a model has no more points than coefficients, or where its variables never vary apart.
    """
    prefill, prefill_fit = fit_prefill(points)
    mixed, mixed_fit = _fit(_mixed_samples(points))
    decode, decode_fit = fit_decode(points)
    costs = InstanceCosts(prefill, MixedStepCost(*mixed), decode)
    return costs, {"prefill": prefill_fit, "mixed": mixed_fit, "decode": decode_fit}


def fit_prefill(points: Sequence[Point]) -> tuple[PrefillCost, Fit]:
    """The cost of whole prompts that explains those among `points` best; raises ProfileError as `fit_costs` does."""
    _check_times(points)
    coefficients, fit = _fit(_prefill_samples(points))
    return PrefillCost(*coefficients), fit


def fit_decode(points: Sequence[Point], *, with_context: bool = True) -> tuple[DecodeStepCost, Fit]:
    """The cost of steps of decodes that explains those among `points` best; raises ProfileError as `fit_costs` does.

    `with_context=False`: for points whose contexts are not known or grow with their sequences. `per_context` is 0 then,
    and what contexts cost is in `per_sequence`.
    """
    _check_times(points)
    coefficients, fit = _fit(_decode_samples(points, with_context=with_context))
    base, per_sequence, per_context = coefficients if with_context else (*coefficients, 0.0)
    return DecodeStepCost(base, per_sequence, per_context), fit


def _check_times(points: Sequence[Point]) -> None:
    for point in points:
        if not (math.isfinite(point.seconds) and point.seconds > 0):
            raise ProfileError(f"a point of {point.seconds!r} seconds at {point.shape}; measure it again")


def _prefill_samples(points: Sequence[Point]) -> _Samples:
    mine = [point for point in points if point.is_prefill]
    return _samples("prefill", ("tokens",), mine, [(point.shape.chunk_tokens,) for point in mine])


def _mixed_samples(points: Sequence[Point]) -> _Samples:
    mine = [point for point in points if not point.is_prefill and point.shape.chunk_tokens]
    shapes = [point.shape for point in mine]
    variables = [(shape.tokens, shape.chunk_context, shape.decode_context) for shape in shapes]
    return _samples("mixed", ("tokens", "chunk_context", "decode_context"), mine, variables)


def _decode_samples(points: Sequence[Point], *, with_context: bool) -> _Samples:
    mine = [point for point in points if not point.shape.chunk_tokens]
    if not with_context:
        return _samples("decode", ("sequences",), mine, [(point.shape.decodes,) for point in mine])
    variables = [(point.shape.decodes, point.shape.decode_context) for point in mine]
    return _samples("decode", ("sequences", "context"), mine, variables)


def _samples(
    model: str, names: tuple[str, ...], points: Sequence[Point], variables: Sequence[tuple[int, ...]]
) -> _Samples:
    return _Samples(model, names, tuple(variables), tuple(point.seconds for point in points))


def _fit(samples: _Samples) -> tuple[list[float], Fit]:
    """The coefficients (the constant first, then one for each variable) and how well they fit."""
    needed = len(samples.names) + 2
    if len(samples.seconds) < needed:
        raise ProfileError(
            f"the {samples.model} model has {len(samples.seconds)} points and needs {needed} or more; "
            "measure more steps, or give the instance more room (kv_memory) if they did not fit"
        )
    variables = np.array(samples.variables, dtype=np.float64)
    measured = np.array(samples.seconds, dtype=np.float64)
    rows = np.column_stack([np.ones(len(measured)), variables])
    coefficients = _relative_least_squares(rows, measured, samples)
    return [float(value) for value in coefficients], _quality(rows @ coefficients, measured, samples)


def _relative_least_squares(
    rows: NDArray[np.float64], measured: NDArray[np.float64], samples: _Samples
) -> NDArray[np.float64]:
    # Columns of length 1: the variables are of sizes from 1 to 10^5, and the solver compares with absolute bounds.
    lengths = np.linalg.norm(rows, axis=0)
    if (lengths == 0).any() or np.linalg.cond(rows / np.where(lengths, lengths, 1)) > 1 / _LEAST_CONDITION:
        ranges = ", ".join(f"{name} in {bounds}" for name, bounds in _ranges(samples).items())
        raise ProfileError(
            f"the points of the {samples.model} model cannot tell its variables apart ({ranges}); "
            "measure steps in which each varies while the others do not"
        )
    relative = rows / measured[:, None]
    scales = np.linalg.norm(relative, axis=0)
    solution, _ = nnls(relative / scales, np.ones(len(measured)))
    return np.asarray(solution / scales, dtype=np.float64)


def _quality(predicted: NDArray[np.float64], measured: NDArray[np.float64], samples: _Samples) -> Fit:
    residuals = predicted - measured
    total = float(np.sum((measured - measured.mean()) ** 2))
    unexplained = float(np.sum(residuals**2))
    # Steps that all take the same time leave nothing to explain.
    r2 = 1.0 - unexplained / total if total > 0 else 1.0 if unexplained == 0 else 0.0
    return Fit(
        r2=r2,
        residual_rms_s=math.sqrt(unexplained / len(measured)),
        worst_relative_residual=float(np.max(np.abs(residuals) / measured)),
        points=len(measured),
        ranges=_ranges(samples),
    )


def _ranges(samples: _Samples) -> dict[str, tuple[int, int]]:
    columns = zip(*samples.variables, strict=True)
    return {name: (min(column), max(column)) for name, column in zip(samples.names, columns, strict=True)}
