"""Waits: where they are known exactly, and against drawn ones."""

from math import exp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.closed_forms.queueing import (
    MOST_UTILISATION,
    NEVER_WAITS,
    Wait,
    both_beyond,
    most_utilisation,
    wait_of,
)


def test_one_server_is_pollaczek_khinchine():
    # M/M/1: P(W > t) = ρ·e^(-(μ - λ)·t). M/D/1: half the mean wait.
    assert wait_of(1, 0.8, 1.0, 1.0) == Wait(pytest.approx(0.8), pytest.approx(5.0))
    constant = wait_of(1, 0.8, 1.0, 0.0)
    assert constant.chance * constant.mean_s == pytest.approx(0.8 / (2 * (1 - 0.8)))
    found = wait_of(1, 0.8, 1.0, 1.0).beyond(np.array([-1.0, 0.0, 10.0]))
    assert found == pytest.approx([1.0, 0.8, 0.8 * exp(-2)])


@pytest.mark.parametrize(("servers", "utilisation", "exact"), [(2, 0.8, 0.7111), (5, 0.9, 0.7625), (20, 0.95, 0.7555)])
def test_several_servers_are_near_erlang_c(servers, utilisation, exact):
    assert wait_of(servers, utilisation, 1.0, 1.0).chance == pytest.approx(exact, rel=0.05)


def test_nobody_waits_without_load_and_everybody_with_too_much():
    assert wait_of(3, 0.0, 1.0, 1.0) is NEVER_WAITS
    assert wait_of(3, 1.0, 1.0, 1.0).beyond(np.array([1e9])) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("first", "second"),
    [(Wait(0.7, 2.0), Wait(0.4, 0.5)), (Wait(0.9, 1.0), Wait(0.9, 1.0)), (Wait(1.0, 3.0), NEVER_WAITS)],
)
def test_the_sum_of_two_waits_is_as_drawn(first, second):
    random = np.random.default_rng(1)
    total = sum(
        np.where(random.random(400_000) < wait.chance, random.exponential(wait.mean_s, 400_000), 0.0)
        for wait in (first, second)
    )
    places = np.array([-1.0, 0.0, 0.5, 2.0, 6.0])
    drawn = [1.0, *((total > place).mean() for place in places[1:])]
    assert both_beyond(first, second, places) == pytest.approx(drawn, abs=0.004)


def test_the_most_utilisation_is_where_it_stops_to_hold():
    assert most_utilisation(lambda share: share <= 0.3) == pytest.approx(0.3, abs=1e-6)
    assert most_utilisation(lambda share: True) == MOST_UTILISATION
    assert most_utilisation(lambda share: False) is None


@given(
    st.floats(1, 50), st.floats(0.01, 0.97), st.floats(0.01, 10), st.floats(0, 4), st.floats(0, 20), st.floats(1, 1.02)
)
def test_more_load_waits_longer(servers, utilisation, mean_s, variation, at, more):
    less = wait_of(servers, utilisation, mean_s, variation).beyond(np.array([at]))
    assert wait_of(servers, utilisation * more, mean_s, variation).beyond(np.array([at])) >= less - 1e-12
