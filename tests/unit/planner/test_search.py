import pytest
from search_options import BANDWIDTH, COMPUTE, decode, device, prefill

from common.messages.control import Role
from services.planner.errors import PlannerError
from services.planner.plan import Option, Plan, Serving
from services.planner.search.enumeration import count_combinations
from services.planner.search.problem import Problem, devices_of, uses_of
from services.planner.search.search import LISTED, Found, best
from services.simulator.hardware.strategy import Strategy

P, D = frozenset({Role.PREFILL}), frozenset({Role.DECODE})
BOTH_WAYS = pytest.mark.parametrize("listed", [LISTED, 0], ids=["listed", "programme"])


def two_devices(**wishes: float) -> Problem:
    return Problem({"x": 4, "y": 4}, (*device("x", COMPUTE, 2.0), *device("y", BANDWIDTH, 1.0)), **wishes)


def first(found: Found, serving: Serving) -> Plan:
    return next(plan for plan in found.plans if plan.serving is serving)


@BOTH_WAYS
@pytest.mark.parametrize("serving", [Serving.DISAGGREGATED, Serving.CRONUS])
def test_compute_becomes_prefill_bandwidth_decode_and_swapped_specs_swap_the_roles(
    serving: Serving, listed: int
) -> None:
    for x, y, roles in [(COMPUTE, BANDWIDTH, (P, D)), (BANDWIDTH, COMPUTE, (D, P))]:
        problem = Problem({"x": 4, "y": 4}, (*device("x", x), *device("y", y)), (serving,))
        plan = best(problem, listed).plans[0]
        assert (uses_of(plan, "x"), uses_of(plan, "y")) == roles
        assert plan.rate_rps == pytest.approx(40)


@BOTH_WAYS
def test_the_best_of_every_serving_is_there_ranked(listed: int) -> None:
    found = best(two_devices(), listed)
    rates = [first(found, serving).rate_rps for serving in Serving]
    assert rates == [pytest.approx(8 / 1.1), pytest.approx(40), pytest.approx(40)]
    assert found.plans == tuple(sorted(found.plans, key=two_devices().ranking))
    # Of equal plans the simpler serving comes first.
    assert [plan.serving for plan in found.plans[:2]] == [Serving.DISAGGREGATED, Serving.CRONUS]
    assert found.bound == pytest.approx(40)


@BOTH_WAYS
def test_plans_say_what_if_a_pool_did_something_else_or_were_alone(listed: int) -> None:
    found = best(two_devices(), listed)
    uses = {(plan.serving, uses_of(plan, "x"), uses_of(plan, "y")) for plan in found.plans}
    nothing = frozenset[Role]()
    assert uses >= {
        (Serving.DISAGGREGATED, P | D, nothing),
        (Serving.DISAGGREGATED, nothing, P | D),
        (Serving.DISAGGREGATED, D, P),
        (Serving.AGGREGATED, D, nothing),
        (Serving.AGGREGATED, nothing, D),
    }
    assert len({(plan.serving, plan.groups) for plan in found.plans}) == len(found.plans)


@BOTH_WAYS
def test_cronus_always_has_a_prefill_instance(listed: int) -> None:
    useless = prefill("x", 1000.0)
    found = best(Problem({"x": 8}, (useless, decode("x", 1.0, 2.0))), listed)
    assert first(found, Serving.CRONUS).instances(Role.PREFILL) == 1
    assert found.plans[0].serving is Serving.AGGREGATED
    assert all(plan.serving is Serving.AGGREGATED or plan.instances(Role.PREFILL) for plan in found.table)


@BOTH_WAYS
def test_the_least_price_for_a_rate(listed: int) -> None:
    found = best(two_devices(rate_rps=19.5), listed)
    plan = first(found, Serving.DISAGGREGATED)
    # Two P and two D; one P of y would do as much as a tenth of one of x.
    assert plan.price == pytest.approx(2 * 2.0 + 2 * 1.0)
    assert plan.rate_rps == pytest.approx(20)
    assert found.bound is not None
    assert found.bound <= found.plans[0].price
    assert all(each.rate_rps >= 19.5 for each in found.plans)


@BOTH_WAYS
def test_nothing_suits_a_rate_beyond_the_cluster_or_a_budget_below_every_plan(listed: int) -> None:
    for problem in (two_devices(rate_rps=41.0), two_devices(budget=0.5)):
        found = best(problem, listed)
        assert (found.plans, found.bound) == ((), None)


@BOTH_WAYS
def test_a_tie_goes_to_the_cheaper_then_to_fewer_devices(listed: int) -> None:
    dear, cheap = prefill("a", 0.5, price=2.0), prefill("b", 0.5, price=1.0)
    many, few = prefill("c", 0.25, Strategy(2), price=1.0), decode("d", 0.5, 1.0, price=1.0)
    pools = {"a": 2, "b": 2, "c": 2, "d": 1}
    plan = best(Problem(pools, (dear, cheap, few), (Serving.DISAGGREGATED,)), listed).plans[0]
    assert (plan.price, {group.option.pool for group in plan.groups}) == (2.0, {"b", "d"})
    plan = best(Problem(pools, (many, cheap, few), (Serving.DISAGGREGATED,)), listed).plans[0]
    assert (plan.price, devices_of(plan)) == (2.0, 2)


@BOTH_WAYS
def test_a_decode_instance_that_never_computes_prompts_is_no_part_of_aggregated_plans(listed: int) -> None:
    only_answers = decode("y", 0.1, float("inf"))
    found = best(Problem({"x": 4, "y": 4}, (*device("x", COMPUTE), only_answers)), listed)
    assert first(found, Serving.CRONUS).rate_rps == pytest.approx(40)
    assert all(not uses_of(plan, "y") for plan in found.plans if plan.serving is Serving.AGGREGATED)


def test_few_combinations_are_all_listed_best_first() -> None:
    problem = two_devices()
    found = best(problem)
    assert found.searched == count_combinations(problem) == 5 * 5 + 2 * 15 * 15
    assert list(found.table) == sorted(found.table, key=problem.order)
    assert {*found.plans} <= {*found.table}
    assert found.plans[0] == found.table[0]
    assert (best(problem, 0).searched, best(problem, 0).table) == (None, ())


def test_an_instance_larger_than_its_pool_is_no_option() -> None:
    found = best(Problem({"x": 2}, (decode("x", 1.0, 2.0), decode("x", 0.1, 0.2, Strategy(4)))))
    assert [group.option.devices for group in found.plans[0].groups] == [1]


@pytest.mark.parametrize(
    "option",
    [
        prefill("z", 1.0),
        prefill("x", 0.0),
        prefill("x", float("inf")),
        decode("x", float("nan"), 1.0),
        decode("x", 1.0, 0.5),
        decode("x", 1.0, float("nan")),
        prefill("x", 1.0, price=-1.0),
    ],
)
def test_impossible_options_are_refused(option: Option) -> None:
    with pytest.raises(PlannerError, match=f"{option.role} with TP1 of pool '{option.pool}'"):
        Problem({"x": 1}, (option,))


@pytest.mark.parametrize("wishes", [{"rate_rps": 0.0}, {"rate_rps": float("nan")}, {"budget": float("nan")}])
def test_impossible_wishes_are_refused(wishes: dict[str, float]) -> None:
    with pytest.raises(PlannerError, match=r"give (a positive number|0 or more)"):
        two_devices(**wishes)


def test_a_pool_of_fewer_than_no_devices_is_refused() -> None:
    with pytest.raises(PlannerError, match="pool 'x' has -1 devices"):
        Problem({"x": -1}, ())


def test_the_same_problem_has_the_same_plans() -> None:
    assert best(two_devices(), 0) == best(two_devices(), 0)
