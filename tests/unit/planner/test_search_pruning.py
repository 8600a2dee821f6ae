import pytest
from search_options import decode, prefill

from services.planner.plan import Option, Serving
from services.planner.search.pruning import prune
from services.simulator.hardware.strategy import Strategy

TP1, TP2, TP4 = Strategy(1), Strategy(2), Strategy(4)


def kept(serving: Serving, *options: Option, devices: int = 8) -> list[tuple[Strategy, int]]:
    return [(each.option.strategy, each.most) for each in prune(serving, options, devices)[0]]


def test_several_small_instances_replace_a_large_one_that_is_no_faster() -> None:
    options = (prefill("a", 1.0, TP1, 1.0), prefill("a", 0.6, TP2, 2.0))
    some, others = prune(Serving.DISAGGREGATED, options, 8)
    assert [(each.option.strategy, each.most) for each in some] == [(TP1, 8)]
    assert [(each.option.strategy, each.reason) for each in others] == [
        (TP2, "2 × TP1 (devices: 2, 2 per hour) have 1.20 times the rate of one TP2 (devices: 2, 2 per hour)")
    ]


def test_a_large_instance_bounds_the_number_of_small_ones_that_it_outdoes() -> None:
    assert kept(Serving.DISAGGREGATED, prefill("a", 1.0, TP1), prefill("a", 0.4, TP2)) == [(TP1, 1), (TP2, 4)]
    assert kept(Serving.DISAGGREGATED, prefill("a", 1.0, TP1), prefill("a", 0.2, TP4)) == [(TP1, 3), (TP4, 2)]
    # Not where it costs more than they do together.
    dear = (prefill("a", 1.0, TP1, 1.0), prefill("a", 0.4, TP2, 2.5))
    assert kept(Serving.DISAGGREGATED, *dear) == [(TP1, 8), (TP2, 4)]
    assert kept(Serving.DISAGGREGATED, prefill("a", 1.0, TP1), prefill("a", 0.4, TP2, 2.5)) == [(TP1, 8), (TP2, 4)]


def test_a_faster_but_dearer_instance_replaces_nothing() -> None:
    options = (decode("a", 1.0, 2.0, TP1, 1.1), decode("a", 1.0, 1.1, TP2, 2.0))
    assert kept(Serving.AGGREGATED, *options) == [(TP1, 8), (TP2, 4)]


def test_what_is_compared_is_what_the_serving_asks_of_an_instance() -> None:
    # Two TP1 do more answers than a TP2, and fewer whole requests.
    options = (decode("a", 1.0, 4.0, TP1), decode("a", 0.6, 1.5, TP2))
    assert kept(Serving.DISAGGREGATED, *options) == [(TP1, 8)]
    assert kept(Serving.AGGREGATED, *options) == [(TP1, 1), (TP2, 4)]
    assert kept(Serving.CRONUS, *options) == [(TP1, 8), (TP2, 4)]


def test_of_options_that_are_the_same_the_first_stays() -> None:
    same = (decode("a", 1.0, 2.0, Strategy(2, 1)), decode("a", 1.0, 2.0, Strategy(1, 2)))
    some, others = prune(Serving.CRONUS, same, 8)
    assert ([each.option for each in some], [each.option for each in others]) == ([same[0]], [same[1]])
    assert "have the rate of one" in others[0].reason


@pytest.mark.parametrize("serving", [Serving.DISAGGREGATED, Serving.CRONUS])
def test_a_decode_instance_without_prompts_is_compared_too(serving: Serving) -> None:
    never, does = decode("a", 1.0, float("inf")), decode("a", 1.0, 2.0)
    expected = never if serving is Serving.DISAGGREGATED else does
    assert [each.option for each in prune(serving, (never, does), 4)[0]] == [expected]
