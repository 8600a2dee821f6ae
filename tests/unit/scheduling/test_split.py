"""The words of a split, by the table of the configuration contract."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduling.split import SplitError, resolve_split


@pytest.mark.parametrize(
    ("split", "prompt_tokens", "expected"),
    [
        ("full", 100, 99),
        ("full", 1, 0),
        (0, 100, 0),
        (1, 100, 1),
        (99, 100, 99),
        (100, 100, 99),
        (10**9, 100, 99),
        (1, 1, 0),
        (0.0, 100, 0),
        (1.0, 100, 99),
        (0.5, 100, 50),
        (0.25, 101, 25),
        (0.001, 100, 0),
        (1.0, 1, 0),
    ],
)
def test_resolves(split: str | int | float, prompt_tokens: int, expected: int) -> None:
    resolved = resolve_split(split, prompt_tokens)
    assert resolved == expected
    assert type(resolved) is int


@pytest.mark.parametrize("split", [True, False, -1, -0.1, 1.5, math.nan, math.inf, "half", "", "1", None])
def test_refuses_with_the_value_and_what_is_allowed(split: str | int | float) -> None:
    with pytest.raises(SplitError) as error:
        resolve_split(split, 100)
    assert f"split {split!r}" in str(error.value)
    for allowed in ('"full"', "an integer", "a float in [0.0, 1.0]"):
        assert allowed in str(error.value)


def test_refuses_an_empty_prompt() -> None:
    with pytest.raises(ValueError, match="0 tokens cannot be split"):
        resolve_split("full", 0)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 10_000))
def test_shares_are_monotonic_and_leave_one_token_to_decode(a: float, b: float, prompt_tokens: int) -> None:
    low, high = sorted((a, b))
    assert 0 <= resolve_split(low, prompt_tokens) <= resolve_split(high, prompt_tokens) <= prompt_tokens - 1
