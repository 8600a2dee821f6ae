import pytest
from search_options import decode, groups, prefill

from common.messages.control import Role
from services.planner.closed_forms.capacity import rate_rps
from services.planner.closed_forms.limiting import limiting_factors
from services.planner.plan import Group, Plan, Serving


def plan_of(serving: Serving, *parts: Group) -> Plan:
    return Plan(serving, parts, rate_rps(serving, parts))


def test_the_stage_that_limits_and_the_slack_of_the_other() -> None:
    factors = limiting_factors(
        plan_of(Serving.DISAGGREGATED, *groups((2, prefill("a", 0.5)), (3, decode("b", 1.0, 4.0))))
    )
    prompts, answers = factors.stages
    assert (prompts.role, prompts.rate_rps, prompts.busy, prompts.limits) == (
        Role.PREFILL,
        pytest.approx(4),
        pytest.approx(0.75),
        False,
    )
    assert (answers.role, answers.rate_rps, answers.limits) == (Role.DECODE, pytest.approx(3), True)
    # A fourth D adds its one request/s; a third P nothing.
    assert [(worth.option.pool, worth.adds_rps) for worth in factors.worths] == [("b", pytest.approx(1)), ("a", 0.0)]
    assert list(factors.lines()) == [
        "3 requests/s, limited by decode, always busy",
        "prefill could do 4 requests/s: 25% to spare",
        "one more decode instance with TP1 of b adds 1 requests/s",
        "one more prefill instance with TP1 of a adds nothing",
    ]


def test_under_cronus_both_limit_as_long_as_prefill_cannot_do_all_prompts() -> None:
    factors = limiting_factors(plan_of(Serving.CRONUS, *groups((1, prefill("a", 2.0)), (1, decode("b", 1.0, 4.0)))))
    assert [stage.limits for stage in factors.stages] == [True, True]
    # A prompt more at P is worth 3/4 of a request, a second of D 1/4.
    assert {worth.option.pool: worth.adds_rps for worth in factors.worths} == {
        "a": pytest.approx(0.5 * 0.75),
        "b": pytest.approx(0.25),
    }
    assert "prefill computes 80% of the work on prompts, decode the rest" in list(factors.lines())


def test_under_cronus_decode_limits_once_prefill_does_all_prompts() -> None:
    factors = limiting_factors(plan_of(Serving.CRONUS, *groups((1, prefill("a", 0.5)), (1, decode("b", 1.0, 4.0)))))
    assert [(stage.busy, stage.limits) for stage in factors.stages] == [(pytest.approx(0.5), False), (1.0, True)]
    assert [worth.option.pool for worth in factors.worths] == ["b", "a"]


def test_aggregated_is_limited_by_all_of_its_instances() -> None:
    factors = limiting_factors(plan_of(Serving.AGGREGATED, *groups((2, decode("b", 1.0, 4.0)))))
    assert [(stage.role, stage.rate_rps, stage.limits) for stage in factors.stages] == [
        (Role.DECODE, pytest.approx(0.5), True)
    ]
    assert next(factors.lines()) == "0.5 requests/s, limited by decode, always busy"
