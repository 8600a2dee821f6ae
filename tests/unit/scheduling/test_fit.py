"""Coefficients from points: exact where these are, close where they are noisy, refused where they say too little."""

import random

import msgspec
import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from common.costs.step import Step
from services.scheduling.profiles.fit import fit_costs
from services.scheduling.profiles.profile import Point, ProfileError
from services.scheduling.profiles.profile_grid import FULL, GridLimits, grid_steps, point_of

TRUTH = InstanceCosts(
    prefill=PrefillCost(0.03, 0.002),
    mixed=MixedStepCost(0.04, 0.0021, 1.5e-5, 1.2e-5),
    decode=DecodeStepCost(0.05, 0.004, 1.1e-5),
)
STEPS = grid_steps(GridLimits(8192, 60_000, 16, max_batch=16, budget=256), FULL)
BETWEEN = (
    Step(StepShape(chunk_tokens=700), is_prefill=True),
    Step(StepShape(decodes=9, decode_context=5_000)),
    Step(StepShape(100, 900, 5, 3_000)),
    Step(StepShape(250, 0, 2, 200)),
)
"""Steps that no grid has."""


def noisy(noise: float, seed: int = 0) -> list[Point]:
    draw = random.Random(seed)
    truth = ((step, step.seconds(TRUTH)) for step in STEPS)
    return [point_of(step, [seconds * (1 + draw.gauss(0, noise))]) for step, seconds in truth]


def relative(fitted: InstanceCosts) -> list[float]:
    """How far each coefficient is from the truth, relative to it."""
    pairs = [
        (getattr(getattr(fitted, model), name), getattr(getattr(TRUTH, model), name))
        for model in InstanceCosts.__struct_fields__
        for name in getattr(TRUTH, model).__struct_fields__
    ]
    return [abs(found - true) / true for found, true in pairs]


def test_exact_points_give_the_very_coefficients() -> None:
    costs, fits = fit_costs(noisy(0.0))
    assert max(relative(costs)) < 1e-6
    assert set(fits) == {"prefill", "mixed", "decode"}
    for fit in fits.values():
        assert fit.r2 == pytest.approx(1.0, abs=1e-9)
        assert fit.worst_relative_residual < 1e-6
        assert fit.residual_rms_s < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_five_percent_hardly_moves_what_is_predicted(seed: int) -> None:
    """Medians of several such runs are noisier by far less; this is the noise of a median on a busy machine."""
    costs, fits = fit_costs(noisy(0.05, seed))
    for step in (*STEPS, *BETWEEN):
        assert step.seconds(costs) == pytest.approx(step.seconds(TRUTH), rel=0.10), step
    assert min(fit.r2 for fit in fits.values()) > 0.95


def test_noise_averages_out_of_the_coefficients() -> None:
    points = [point for seed in range(40) for point in noisy(0.05, seed)]
    costs, _ = fit_costs(points)
    assert max(relative(costs)) < 0.05


def test_a_time_that_is_not_quite_linear_is_wrong_by_little_at_both_ends() -> None:
    """Attention makes long prompts a little dearer than linear. By plain squares the longest would decide alone, and
    the ordinary ones would be predicted a fifth too high.
    """

    def true_s(tokens: int) -> float:
        return 0.03 + 0.002 * tokens + 4e-7 * tokens**2

    points = [
        point_of(Step(point.shape, True), [true_s(point.shape.chunk_tokens)]) if point.is_prefill else point
        for point in noisy(0.0)
    ]
    costs, fits = fit_costs(points)
    for tokens in (32, 100, 350, 700, 1100):
        assert costs.prefill.seconds(tokens) == pytest.approx(true_s(tokens), rel=0.09)
    assert costs.prefill.seconds(2048) == pytest.approx(true_s(2048), rel=0.2)
    assert fits["prefill"].r2 > 0.95


def test_no_coefficient_is_below_zero() -> None:
    """Points in which longer contexts happen to take less time."""
    falling = [
        point_of(step, [0.1 - 1e-6 * step.shape.decode_context]) if step.shape.decodes and not step.shape.chunk_tokens
        else point_of(step, [step.seconds(TRUTH)])
        for step in STEPS
    ]  # fmt: skip
    costs, _ = fit_costs(falling)
    assert costs.decode.per_context == 0.0
    assert min(costs.decode.base, costs.decode.per_sequence) >= 0.0


def test_steps_that_all_take_the_same_time_are_a_fit_too() -> None:
    costs, fits = fit_costs([point_of(step, [0.25]) for step in STEPS])
    for step in STEPS:
        assert step.seconds(costs) == pytest.approx(0.25)
    assert all(0.0 <= fit.r2 <= 1.0 for fit in fits.values())


def test_ranges_say_where_it_was_measured() -> None:
    _, fits = fit_costs(noisy(0.0))
    assert fits["prefill"].ranges == {"tokens": (32, 2048)}
    assert fits["decode"].ranges["sequences"] == (1, 16)
    assert fits["mixed"].ranges["tokens"][1] == 256
    assert fits["mixed"].ranges["chunk_context"][0] == 0
    assert fits["mixed"].points == sum(bool(step.shape.chunk_tokens) and not step.is_prefill for step in STEPS)


def without(model: str) -> list[Point]:
    keep = {
        "prefill": lambda point: not point.is_prefill,
        "mixed": lambda point: point.is_prefill or not point.shape.chunk_tokens,
        "decode": lambda point: point.shape.chunk_tokens > 0,
    }[model]
    return [point for point in noisy(0.0) if keep(point)]


@pytest.mark.parametrize("model", ["prefill", "mixed", "decode"])
def test_too_few_points_are_refused(model: str) -> None:
    with pytest.raises(ProfileError, match=f"the {model} model has 0 points and needs"):
        fit_costs(without(model))
    spared = [point for point in noisy(0.0) if point not in without(model)]
    needed = {"prefill": 3, "mixed": 5, "decode": 4}[model]
    with pytest.raises(ProfileError, match=f"the {model} model has {needed - 1} points and needs {needed}"):
        fit_costs(without(model) + spared[: needed - 1])


def constant(model: str) -> list[Point]:
    """Points of one model that vary in too little."""
    shapes = {
        "prefill": [StepShape(chunk_tokens=64)] * 6,
        # The budget is always filled: the constant and the price of a token cannot be told apart.
        "mixed": [StepShape(256 - n, 100 * n, n, 50 * n * n) for n in (0, 1, 2, 5, 8, 13)],
        # Every context is of the same length.
        "decode": [StepShape(decodes=n, decode_context=100 * n) for n in (1, 2, 3, 5, 8)],
    }[model]
    return [point_of(Step(shape, model == "prefill"), [0.1]) for shape in shapes]


@pytest.mark.parametrize("model", ["prefill", "mixed", "decode"])
def test_points_that_cannot_tell_the_variables_apart_are_refused(model: str) -> None:
    with pytest.raises(ProfileError, match=f"points of the {model} model cannot tell its variables apart"):
        fit_costs(without(model) + constant(model))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_point_without_a_time_is_refused(seconds: float) -> None:
    points = noisy(0.0)
    points[3] = msgspec.structs.replace(points[3], seconds=seconds)
    with pytest.raises(ProfileError, match="measure it again"):
        fit_costs(points)
