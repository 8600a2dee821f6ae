"""Predictors: quantiles against their definition and against numpy, means, classes, and what bounds them all."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from services.scheduling.ledgers.output_lengths import (
    PREDICTORS,
    ClassQuantile,
    LengthWindow,
    MaxTokens,
    Oracle,
    OutputLengths,
    RunningMean,
    RunningQuantile,
    load_predictor,
)
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import a_request

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60)
QUANTILES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.99, 1.0])
LONG = a_request(max_tokens=1000)


def of(user: str) -> RequestSpec:
    return a_request(max_tokens=1000, user=user)


def learn(predictor: OutputLengths, request: RequestSpec, tokens: int, *, times: int) -> None:
    for _ in range(times):
        predictor.observe(request, tokens)


def after(quantile: float, window: int, lengths: list[int]) -> float:
    window_of = LengthWindow(quantile, window)
    for length in lengths:
        window_of.observe(length)
    expected = window_of.expected()
    assert len(window_of) == min(window, len(lengths))
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
    assert LengthWindow().expected() is None
    for predictor in (RunningQuantile(), RunningMean()):
        assert predictor.predict(LONG) is None


def test_a_change_of_the_traffic_arrives() -> None:
    assert after(0.6, 512, [100] * 512) == 100
    assert after(0.6, 512, [100] * 512 + [900] * 200) == 100
    assert after(0.6, 512, [100] * 512 + [900] * 206) == 900


@pytest.mark.parametrize(("quantile", "window"), [(-0.1, 10), (1.1, 10), (float("nan"), 10), (0.5, 0)])
def test_nonsense_is_refused(quantile: float, window: int) -> None:
    with pytest.raises(ValueError, match="it is in"):
        RunningQuantile(quantile, window)


# ---------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_no_prediction_is_beyond_what_the_request_allows(name: str) -> None:
    predictor = load_predictor(name)
    learn(predictor, LONG, 700, times=20)
    assert predictor.predict(a_request(max_tokens=30)) == 30
    assert predictor.predict(LONG) == (LONG.max_tokens if name == "max_tokens" else 700)


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(ConfigError, match="'oracle' is not known; choose one of class, max_tokens, mean, quantile"):
        load_predictor("oracle")


def test_the_oracle_is_told() -> None:
    oracle = Oracle(lambda request: 2.5 * len(request.prompt))
    learn(oracle, LONG, 1, times=20)
    assert oracle.predict(a_request(10, 1000)) == 25.0
    assert oracle.predict(a_request(10, 20)) == 20.0


def test_max_tokens_learns_nothing() -> None:
    predictor = MaxTokens()
    learn(predictor, LONG, 1, times=5)
    assert predictor.predict(LONG) == LONG.max_tokens


# ---------------------------------------------------------------- the mean


@given(st.integers(1, 20), LENGTHS)
def test_the_mean_is_that_of_the_window(window: int, lengths: list[int]) -> None:
    predictor = RunningMean(window)
    for length in lengths:
        predictor.observe(LONG, length)
    assert predictor.predict(LONG) == pytest.approx(np.mean(lengths[-window:]))


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RunningMean(0)


# ---------------------------------------------------------------- classes


def test_a_class_has_a_length_of_its_own_once_it_has_enough_answers() -> None:
    predictor = ClassQuantile(enough=3)
    learn(predictor, of("chat"), 100, times=10)
    learn(predictor, of("code"), 900, times=2)
    assert predictor.predict(of("code")) == 100, "two answers are not enough: as all"
    learn(predictor, of("code"), 900, times=1)
    assert predictor.predict(of("code")) == 900
    assert predictor.predict(of("chat")) == 100
    assert predictor.predict(of("unheard of")) == 100
    assert predictor.predict(of("")) == 100


def test_before_the_first_answer_it_guesses() -> None:
    predictor = ClassQuantile(guess=40)
    assert predictor.predict(LONG) == 40
    assert predictor.predict(a_request(max_tokens=30)) == 30
    learn(predictor, of("chat"), 7, times=1)
    assert predictor.predict(LONG) == 7


def test_the_class_seen_longest_ago_is_forgotten() -> None:
    predictor = ClassQuantile(enough=1, classes=2)
    learn(predictor, of("a"), 10, times=1)
    learn(predictor, of("b"), 20, times=1)
    learn(predictor, of("a"), 10, times=1)
    learn(predictor, of("c"), 90, times=9)
    assert [predictor.predict(of(name)) for name in "abc"] == [10, 90, 90]


def test_without_users_it_is_the_quantile_of_all() -> None:
    of_class, of_all = ClassQuantile(), RunningQuantile()
    for length in np.random.default_rng(1).integers(1, 500, 700).tolist():
        for predictor in (of_class, of_all):
            predictor.observe(LONG, length)
        assert of_class.predict(LONG) == of_all.predict(LONG)


@pytest.mark.parametrize("wrong", [{"enough": 0}, {"classes": 0}, {"guess": 0}])
def test_classes_of_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ClassQuantile(**wrong)  # type: ignore[arg-type]
