import pytest
from search_options import decode, groups, prefill

from services.planner.closed_forms.capacity import cronus_rps, handed_rps, rate_rps
from services.planner.plan import Serving


def test_aggregated_instances_add_up_and_prefill_does_nothing() -> None:
    plan = groups((2, decode("a", 1.0, 2.0)), (3, decode("b", 1.0, 4.0)), (5, prefill("a", 0.1)))
    assert rate_rps(Serving.AGGREGATED, plan) == pytest.approx(2 / 2 + 3 / 4)


def test_the_slower_stage_is_the_rate_of_disaggregated() -> None:
    plan = groups((2, prefill("a", 0.5)), (3, decode("b", 1.0, 4.0)))
    assert rate_rps(Serving.DISAGGREGATED, plan) == pytest.approx(3.0)
    assert rate_rps(Serving.DISAGGREGATED, plan[:1]) == 0.0
    assert rate_rps(Serving.DISAGGREGATED, plan[1:]) == 0.0


def test_cronus_by_hand() -> None:
    # One D: u requests/s of 4 s and y of 1 s, of which P does at most 0.5: 4u + 0.5 = 1, so 0.125 + 0.5.
    assert cronus_rps(groups((1, prefill("a", 2.0)), (1, decode("b", 1.0, 4.0)))) == pytest.approx(0.625)
    # P can do all prompts: D does answers only.
    assert cronus_rps(groups((1, prefill("a", 0.1)), (1, decode("b", 1.0, 4.0)))) == pytest.approx(1.0)
    # Without P they are whole requests.
    assert cronus_rps(groups((2, decode("b", 1.0, 4.0)))) == pytest.approx(0.5)


def test_prompts_of_the_device_that_is_spared_most_go_first() -> None:
    little, much = decode("a", 3.0, 4.0), decode("b", 1.0, 4.0)
    # P does 0.5 prompts/s: of `much` each is worth 3/4 of a request, of `little` 1/4.
    assert cronus_rps(groups((1, prefill("p", 2.0)), (1, little), (1, much))) == pytest.approx(0.25 + 0.25 + 0.5 * 0.75)
    # 1.2 prompts/s: one for `much`, which does no more, and 0.2 for `little`.
    assert cronus_rps(groups((12, prefill("p", 10.0)), (1, little), (1, much))) == pytest.approx(
        0.25 + 0.25 + 1 * 0.75 + 0.2 * 0.25
    )


def test_a_decode_instance_that_computes_no_prompts_depends_on_prefill() -> None:
    only_answers = decode("a", 1.0, float("inf"))
    assert cronus_rps(groups((1, only_answers))) == 0.0
    assert cronus_rps(groups((1, prefill("p", 4.0)), (1, only_answers))) == pytest.approx(0.25)


def test_cronus_is_never_below_either_of_the_others() -> None:
    for count in range(1, 9):
        plan = groups((count, prefill("a", 1.0)), (9 - count, decode("a", 0.7, 1.9)))
        assert cronus_rps(plan) >= rate_rps(Serving.DISAGGREGATED, plan) - 1e-12
        assert cronus_rps(plan) >= rate_rps(Serving.AGGREGATED, plan) - 1e-12


def test_prompts_handed_over_are_no_more_than_either_side_can_do() -> None:
    plan = groups((2, prefill("a", 0.5)), (3, decode("b", 1.0, 4.0)))
    assert [handed_rps(serving, plan) for serving in Serving] == [0.0, pytest.approx(3), pytest.approx(3)]
