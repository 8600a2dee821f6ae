from search_options import BANDWIDTH, COMPUTE, device, groups, prefill

from common.messages.control import Role
from services.planner.closed_forms.capacity import rate_rps
from services.planner.plan import Group, Plan, Serving
from services.planner.search.neighbours import neighbours
from services.planner.search.problem import Problem, make_plan
from services.simulator.hardware.strategy import Strategy

X, Y = device("x", COMPUTE, 2.0), device("y", BANDWIDTH, 1.0)


def plan_of(serving: Serving, *parts: Group) -> Plan:
    return make_plan(serving, parts, rate_rps(serving, parts))


def test_one_more_one_less_and_one_moved() -> None:
    problem = Problem({"x": 3, "y": 2}, (*X, *Y))
    plan = plan_of(Serving.DISAGGREGATED, *groups((2, X[0]), (1, Y[1])))
    found = neighbours(plan, problem)
    counts = {tuple((g.count, g.option.pool, g.option.role.value) for g in each.groups) for each in found}
    p, d = "prefill", "decode"
    assert counts == {
        ((3, "x", p), (1, "y", d)),
        ((2, "x", p), (1, "x", d), (1, "y", d)),
        ((2, "x", p), (1, "y", p), (1, "y", d)),
        ((2, "x", p), (2, "y", d)),
        ((1, "x", p), (1, "y", d)),
        ((1, "x", p), (1, "x", d), (1, "y", d)),
    }
    assert len(found) == len(counts)
    assert [each.rate_rps for each in found] == sorted((each.rate_rps for each in found), reverse=True)


def test_none_leaves_the_pool_the_budget_or_the_serving() -> None:
    problem = Problem({"x": 1, "y": 1}, (*X, *Y), budget=3.0)
    assert neighbours(plan_of(Serving.CRONUS, *groups((1, X[0]), (1, Y[1]))), problem) == ()
    alone = plan_of(Serving.AGGREGATED, *groups((1, Y[1])))
    assert [each.instances(Role.DECODE) for each in neighbours(alone, problem)] == [2]


def test_a_moved_instance_may_be_of_another_strategy() -> None:
    wide = prefill("y", 0.6, Strategy(2))
    problem = Problem({"y": 3}, (*Y, wide))
    found = neighbours(plan_of(Serving.DISAGGREGATED, *groups((1, Y[0]), (2, Y[1]))), problem)
    assert any(group.option is wide for each in found for group in each.groups) is False
    found = neighbours(plan_of(Serving.DISAGGREGATED, *groups((1, Y[0]), (1, Y[1]))), Problem({"y": 4}, (*Y, wide)))
    assert any(group.option is wide for each in found for group in each.groups)
