"""The running quantile against the definition of one, and against numpy."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduling.output_lengths import RunningQuantile

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60)
QUANTILES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.99, 1.0])


def after(quantile: float, window: int, lengths: list[int]) -> float:
    predictor = RunningQuantile(quantile, window)
    for length in lengths:
        predictor.observe(length)
    expected = predictor.expected()
    assert expected is not None
    return expected


@given(QUANTILES, st.integers(1, 70), LENGTHS)
def test_it_is_a_quantile_of_the_window(quantile: float, window: int, lengths: list[int]) -> None:
    """No more than a share q of the window is below it, and no less than q is at it or below."""
    kept, expected = lengths[-window:], after(quantile, window, lengths)
    share = Fraction(quantile).limit_denominator(1000)
    assert expected in kept
    assert sum(length < expected for length in kept) <= share * len(kept) <= sum(length <= expected for length in kept)


@given(QUANTILES, st.integers(1, 70), LENGTHS)
def test_it_is_what_numpy_says(quantile: float, window: int, lengths: list[int]) -> None:
    """Where q·n is whole two lengths are quantiles: numpy takes the lower, we the higher."""
    kept, expected = lengths[-window:], after(quantile, window, lengths)
    lower = np.quantile(kept, quantile, method="inverted_cdf")
    position = Fraction(quantile).limit_denominator(1000) * len(kept)
    if position.denominator > 1 or quantile == 1.0:
        assert expected == lower
    else:
        assert expected == sorted(kept)[int(position)] >= lower


@given(QUANTILES, st.integers(1, 20), LENGTHS, LENGTHS)
def test_what_has_left_the_window_is_forgotten(
    quantile: float, window: int, before: list[int], lengths: list[int]
) -> None:
    filled = lengths * window
    assert after(quantile, window, before + filled) == after(quantile, window, filled)


def test_nothing_is_expected_before_the_first_answer() -> None:
    assert RunningQuantile().expected() is None


def test_a_change_of_the_traffic_arrives() -> None:
    assert after(0.6, 512, [100] * 512) == 100
    assert after(0.6, 512, [100] * 512 + [900] * 200) == 100
    assert after(0.6, 512, [100] * 512 + [900] * 206) == 900


@pytest.mark.parametrize(("quantile", "window"), [(-0.1, 10), (1.1, 10), (float("nan"), 10), (0.5, 0)])
def test_nonsense_is_refused(quantile: float, window: int) -> None:
    with pytest.raises(ValueError, match="it is in"):
        RunningQuantile(quantile, window)
