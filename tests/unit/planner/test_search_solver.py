import os

import numpy as np
import pytest

from services.planner.search.highs import LinearProgramme, solve


def knapsacks(size: int, constraints: int) -> LinearProgramme:
    """Several knapsacks at once, which no short search solves."""
    source = np.random.default_rng(7)
    weights = source.uniform(1, 100, (constraints, size))
    return LinearProgramme(
        cost=-source.uniform(1, 100, size),
        rows=-weights,
        bounds=-weights.sum(axis=1) / 2,
        upper=np.ones(size),
        integral=np.ones(size),
    )


def test_whole_numbers_only_where_they_are_asked_for() -> None:
    programme = LinearProgramme(
        cost=np.array([-1.0, -1.0]),
        rows=np.array([[-2.0, -2.0]]),
        bounds=np.array([-3.0]),
        upper=np.array([1.0, 1.0]),
        integral=np.array([1.0, 0.0]),
    )
    solution = solve(programme)
    assert solution.is_proved
    assert solution.columns == pytest.approx([1.0, 0.5])


def test_rows_that_cannot_all_hold_have_no_columns_and_that_is_proved() -> None:
    one = np.ones(1)
    solution = solve(LinearProgramme(cost=one, rows=np.ones((1, 1)), bounds=2 * one, upper=one, integral=one))
    assert (solution.columns, solution.is_proved) == (None, True)


def test_a_search_that_was_stopped_is_no_proof() -> None:
    programme = knapsacks(60, 5)
    stopped = solve(programme, most_nodes=3)
    assert not stopped.is_proved
    again = solve(programme, most_nodes=3)
    assert stopped.columns is not None
    assert again.columns is not None
    assert (stopped.columns == again.columns).all()


def test_nothing_is_printed_and_later_output_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    solve(knapsacks(30, 5))
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"
