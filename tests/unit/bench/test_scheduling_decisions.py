"""The rows of the benchmark of decisions; what a decision takes is no test's business."""

import random

from common.clock import SystemClock
from services.bench.scheduling.decisions import SIDES, measure_decisions
from services.bench.scheduling.meshes import a_mesh, a_request
from services.scheduling.placement import Placement
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.cronus import CronusPolicy


async def test_a_row_for_each_number_of_pairs_shortlist_and_balance() -> None:
    steps: list[str] = []
    rows = await measure_decisions(2, 3, SystemClock(), steps.append)
    cases = {(row["pairs"], row["shortlist"], row["balance"]) for row in rows}
    assert cases == {(side * side, most, balance) for side in SIDES for most in (8, 3) for balance in Balance}
    assert len(rows) == len(cases)
    assert len(steps) == len(rows) * (3 + 1)
    for row in rows:
        assert (row["where"], row["repeats"], row["decisions"]) == ("real", 3, 2)
        assert 0 < float(row["us_per_decision_min"] or 0) <= float(row["us_per_decision"] or 0)
        assert float(row["us_per_decision"] or 0) <= float(row["us_per_decision_max"] or 0)


def test_the_meshes_are_in_states_that_lead_to_different_decisions() -> None:
    draw = random.Random(8)
    placements = [CronusPolicy().place(a_request(draw), a_mesh(8, 8, draw)) for _ in range(16)]
    chosen = [placement for placement in placements if isinstance(placement, Placement)]
    assert len(chosen) == 16
    assert len({(placement.prefill, placement.decode) for placement in chosen}) > 4
    assert any(placement.split for placement in chosen)
