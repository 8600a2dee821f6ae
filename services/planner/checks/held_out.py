"""Fit the linear models to a few measured steps, predict the others, and see how wrong that is. Pure."""

from collections.abc import Callable, Sequence
from statistics import fmean, median

import msgspec

from common.costs.shape import StepShape
from services.planner.checks.cases import MeasuredCase, MeasuredStep, Phase
from services.scheduling.profiles.fit import fit_decode, fit_prefill
from services.scheduling.profiles.profile import Point, ProfileError

StepTime = Callable[[MeasuredStep], float]
"""Seconds of a step, as some model has them."""


class Agreement(msgspec.Struct, frozen=True):
    """How far predictions are from measured seconds, over the steps that nothing was fitted to."""

    mean_error: float
    """Mean of |predicted - measured| / measured."""
    worst_error: float
    median_ratio: float
    """Of predicted to measured: above 1 the model is slow, below 1 it is fast."""


class PhaseCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of one case. `fit` is None where too few steps were profiled, `spec` where no specification applies."""

    phase: Phase
    profiled: int
    predicted: int
    fit: Agreement | None
    spec: Agreement | None
    rounding: float
    """Share of a step's seconds that the table's rounding is wrong by, in the mean: no model can do better."""


def check_case(case: MeasuredCase, spec: StepTime | None) -> list[PhaseCheck]:
    """One check for each phase that has steps to predict; `spec` is the model that knows only the device's figures."""
    fitted = {
        Phase.PREFILL: _prefill_time(case),
        Phase.PREFILL_BATCHED: _prefill_time(case),
        Phase.DECODE: _decode_time(case),
    }
    checks = []
    for phase, fit in fitted.items():
        mine = [step for step in case.steps if step.phase is phase]
        rest = [step for step in mine if not step.is_profiled]
        if rest:
            checks.append(
                PhaseCheck(
                    phase=phase,
                    profiled=len(mine) - len(rest),
                    predicted=len(rest),
                    fit=None if fit is None else agreement(fit, rest),
                    spec=None if spec is None else agreement(spec, rest),
                    # A value rounded to a grid is wrong by a quarter of the grid's width in the mean.
                    rounding=fmean(step.resolution_s / 4 / step.seconds for step in rest),
                )
            )
    return checks


def agreement(predict: StepTime, steps: Sequence[MeasuredStep]) -> Agreement:
    """How well `predict` does on `steps`, of which there is at least one."""
    ratios = [predict(step) / step.seconds for step in steps]
    errors = [abs(ratio - 1) for ratio in ratios]
    return Agreement(fmean(errors), max(errors), median(ratios))


def _prefill_time(case: MeasuredCase) -> StepTime | None:
    """Several prompts in a step are taken as one of their sum."""
    try:
        cost, _ = fit_prefill(_profiled(case))
    except ProfileError:
        return None
    return lambda step: cost.seconds(sum(step.prompts))


def _decode_time(case: MeasuredCase) -> StepTime | None:
    try:
        cost, _ = fit_decode(_profiled(case), with_context=case.has_contexts)
    except ProfileError:
        return None
    return lambda step: cost.seconds(step.sequences, step.context)


def _profiled(case: MeasuredCase) -> list[Point]:
    return [_point(step) for step in case.steps if step.is_profiled]


def _point(step: MeasuredStep) -> Point:
    shape = StepShape(chunk_tokens=sum(step.prompts), decodes=step.sequences, decode_context=step.context)
    return Point(
        shape=shape,
        is_prefill=bool(step.prompts),
        seconds=step.seconds,
        seconds_min=step.seconds,
        seconds_max=step.seconds,
        repeats=1,
    )
