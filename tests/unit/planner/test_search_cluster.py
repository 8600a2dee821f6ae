"""A cluster of 64 machines × 8 devices of six device types, searched for the most rate and for the least price."""

import pytest
from search_options import large_cluster

from services.planner.plan import Serving
from services.planner.search.neighbours import neighbours
from services.planner.search.search import best


@pytest.mark.parametrize("wishes", [{}, {"budget": 400.0}, {"rate_rps": 1500.0}], ids=["rate", "budget", "price"])
def test_the_best_plans_fit_reach_the_bound_and_have_no_better_neighbours(
    wishes: dict[str, float], capfd: pytest.CaptureFixture[str]
) -> None:
    problem = large_cluster(**wishes)
    found = best(problem)
    assert found.searched is None
    for plan in found.plans:
        assert problem.suits(plan)
        for pool, devices in problem.pools.items():
            assert sum(g.count * g.option.devices for g in plan.groups if g.option.pool == pool) <= devices
    assert found.bound is not None
    reached = found.plans[0].rate_rps if problem.rate_rps is None else found.plans[0].price
    assert reached == pytest.approx(found.bound, rel=0.01)
    assert (reached <= found.bound * (1 + 1e-9)) == (problem.rate_rps is None)
    tops = {plan.serving: plan for plan in reversed(found.plans)}
    assert {*tops} == {*Serving}
    for plan in tops.values():
        suiting = [each for each in neighbours(plan, problem) if problem.suits(each)]
        assert suiting
        assert min(map(problem.order, suiting)) >= problem.order(plan)
    assert capfd.readouterr().out == "", "the solver printed"
