"""The correction follows a device that changes, has no bias under noise, and stays sane whatever it is told."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduling.profiles.correction import Correction

SECONDS = st.floats(min_value=1e-6, max_value=1e4)
ANYTHING = st.floats(allow_nan=True, allow_infinity=True)


def after(correction: Correction, ratio: float, steps: int, predicted_s: float = 0.05) -> Correction:
    for _ in range(steps):
        correction = correction.observe(predicted_s, ratio * predicted_s)
    return correction


def test_a_device_that_slows_by_half_in_mid_run() -> None:
    before = after(Correction(), 1.0, 200)
    assert before.factor == pytest.approx(1.0)
    assert after(before, 2.0, 5).factor == pytest.approx(1.41, abs=0.02)
    assert after(before, 2.0, 30).factor == pytest.approx(2.0, rel=0.05)
    again = after(after(before, 2.0, 100), 1.0, 50)
    assert again.factor == pytest.approx(1.0, rel=0.05)


@given(change=st.floats(min_value=1 / 12, max_value=12), start=st.floats(min_value=1 / 12, max_value=12))
def test_it_arrives_at_any_change_within_its_bounds(change: float, start: float) -> None:
    assert after(Correction(start), change, 150).factor == pytest.approx(change, rel=0.02)


@pytest.mark.parametrize("level", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_sum_of_corrected_predictions_has_no_bias_under_noise(level: float, seed: int) -> None:
    """Noise of 30 %, whose mean is 1: what is predicted for all steps together is what they take, to 2 %."""
    draw = random.Random(seed)
    correction = after(Correction(), level, 100)
    predicted = measured = 0.0
    for _ in range(4000):
        model_s = draw.choice([0.01, 0.1, 1.0])
        took_s = model_s * level * draw.uniform(0.7, 1.3)
        predicted += model_s * correction.factor
        measured += took_s
        correction = correction.observe(model_s, took_s)
    assert predicted == pytest.approx(measured, rel=0.02)


@given(factor=st.floats(min_value=1 / 16, max_value=16), predicted_s=SECONDS, measured_s=SECONDS)
def test_one_outlier_moves_it_by_a_tenth_at_most(factor: float, predicted_s: float, measured_s: float) -> None:
    moved = Correction(factor).observe(predicted_s, measured_s).factor
    assert factor * 0.95 - 1e-12 <= moved <= factor * 1.1 + 1e-12


@given(st.lists(st.tuples(ANYTHING, ANYTHING), max_size=300))
def test_it_stays_within_its_bounds_whatever_it_is_told(observations: list[tuple[float, float]]) -> None:
    correction = Correction()
    for predicted_s, measured_s in observations:
        correction = correction.observe(predicted_s, measured_s)
        assert 1 / 16 <= correction.factor <= 16


@pytest.mark.parametrize("nonsense", [0.0, -1.0, math.inf, -math.inf, math.nan])
def test_nonsense_changes_nothing(nonsense: float) -> None:
    correction = Correction(1.5)
    assert correction.observe(nonsense, 0.1) == correction
    assert correction.observe(0.1, nonsense) == correction


@given(st.lists(SECONDS, min_size=1, max_size=50), SECONDS)
def test_slower_steps_never_lower_it(measured: list[float], predicted_s: float) -> None:
    correction = slower = Correction()
    for seconds in measured:
        correction = correction.observe(predicted_s, seconds)
        slower = slower.observe(predicted_s, seconds * 1.5)
        assert slower.factor >= correction.factor * (1 - 1e-9)
