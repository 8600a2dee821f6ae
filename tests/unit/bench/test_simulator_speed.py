"""The rows about the simulator's own speed."""

import itertools

from services.bench.policies.simulator_speed import CASES, SpeedCase, measure_simulator_speed
from services.scheduling.policies.cronus import CronusPolicy
from services.scheduling.policies.weighted import WeightedPolicy


class CountingClock:
    """Two seconds later at each look."""

    def __init__(self) -> None:
        self._times = itertools.count(0.0, 2.0)

    def now(self) -> float:
        return next(self._times)


def test_a_row_for_each_case() -> None:
    cases = (
        SpeedCase("together", WeightedPolicy, high=2, low=0, rate=5.0),
        SpeedCase("apart", CronusPolicy, high=1, low=1, rate=5.0),
    )
    steps: list[str] = []
    rows = measure_simulator_speed(30, 3, CountingClock(), steps.append, cases)
    assert len(steps) == 6
    assert [row["system"] for row in rows] == ["together", "apart"]
    for row in rows:
        assert (row["where"], row["repeats"], row["instances"], row["requests"]) == ("real", 3, 2, 30)
        assert (row["seconds"], row["requests_per_s"], row["requests_per_s_min"]) == (2.0, 15.0, 15.0)
        assert isinstance(row["steps"], int)
        assert row["steps_per_s"] == row["steps"] / 2.0
    assert rows[0]["prefill_busy"] is None
    assert rows[1]["prefill_busy"] is not None


def test_the_cases_are_of_a_hundred_instances() -> None:
    assert [case.high + case.low for case in CASES] == [100, 100]
