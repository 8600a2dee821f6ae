"""The policy `dp`: each instance gets its share of the requests, in turn."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.costs.models import MixedStepCost
from common.errors import FailureKind
from common.ids import InstanceId
from services.scheduling.placement import Placement
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import InstanceView, Wait
from services.scheduling.policies.weighted import WeightedPolicy, weights_of
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import BUDGET, COSTS, a_decode, a_member, a_mesh, a_prefill, a_request

POLICY = WeightedPolicy()
WEIGHTS = st.lists(st.one_of(st.integers(1, 20), st.floats(0.01, 50.0)), min_size=1, max_size=8)


def weighted(*weights: float | None) -> list[InstanceView]:
    names = [f"d{number}" for number in range(len(weights))]
    return [a_decode(name, member=a_member(name, weight=weight)) for name, weight in zip(names, weights, strict=True)]


def deal(views: list[InstanceView], request: RequestSpec) -> tuple[str, list[InstanceView]]:
    """Place one request; who got it, and the instances after that."""
    placement = POLICY.place(request, a_mesh(*views))
    assert isinstance(placement, Placement)
    assert (placement.prefill, placement.split, placement.kv_bytes) == (None, 0, 0)
    after = [
        msgspec.structs.replace(view, placed=view.placed + (view.member.instance == placement.decode)) for view in views
    ]
    return placement.decode, after


def dealt(views: list[InstanceView], requests: int) -> list[str]:
    names = []
    for _ in range(requests):
        name, views = deal(views, a_request())
        names.append(name)
    return names


@given(WEIGHTS, st.integers(1, 120))
def test_after_any_number_each_has_its_share_to_one(weights: list[float], requests: int) -> None:
    views, counts = weighted(*weights), Counter[str]()
    for number in range(1, requests + 1):
        name, views = deal(views, a_request())
        counts[name] += 1
        for index, weight in enumerate(weights):
            assert abs(counts[f"d{index}"] - number * weight / sum(weights)) <= 1 + 1e-9


def test_one_large_among_small_ones_is_not_dealt_a_burst() -> None:
    """Largest first would deal it the first five of ten."""
    names = dealt(weighted(5.0, 1.0, 1.0, 1.0, 1.0, 1.0), 10)
    assert Counter(names) == {"d0": 5, **{f"d{number}": 1 for number in range(1, 6)}}
    assert all(names[turn : turn + 3] != ["d0"] * 3 for turn in range(8))


def test_equal_weights_take_turns() -> None:
    assert dealt(weighted(1.0, 1.0, 1.0), 6) == ["d0", "d1", "d2"] * 2


def test_it_waits_for_the_one_whose_turn_it_is() -> None:
    full = a_decode("d0", member=a_member("d0", weight=1.0), has_room=False)
    free = a_decode("d1", member=a_member("d1", weight=1.0))
    assert POLICY.place(a_request(), a_mesh(full, free)) == Wait("room at decode instance 'd0'")
    after_d0 = msgspec.structs.replace(full, placed=1)
    assert deal([after_d0, free], a_request())[0] == "d1"


def test_what_one_cannot_hold_goes_to_another_and_counts_there() -> None:
    small = a_decode("d0", member=a_member("d0", weight=1.0, tokens=500))
    views = [small, *weighted(None, 1.0)[1:]]
    for _ in range(3):
        name, views = deal(views, a_request(1000))
        assert name == "d1"
    assert [view.placed for view in views] == [0, 3]
    names = []
    for _ in range(4):
        name, views = deal(views, a_request(100))
        names.append(name)
    assert names == ["d0"] * 4


# ---------------------------------------------------------------- weights


def test_without_weights_the_rates_of_filled_steps_count() -> None:
    slow = a_decode("d0", member=a_member("d0", costs=COSTS.scaled(3.0)))
    fast = a_decode("d1")
    weights = weights_of([slow, fast])
    assert weights[InstanceId("d1")] == pytest.approx(3 * weights[InstanceId("d0")])
    step_s = COSTS.mixed.base + COSTS.mixed.per_token * BUDGET
    assert weights[InstanceId("d1")] == pytest.approx(BUDGET / step_s)
    assert Counter(dealt([slow, fast], 8)) == {"d0": 2, "d1": 6}


def test_a_larger_budget_is_a_higher_rate_up_to_a_full_step() -> None:
    members = [a_member(f"d{index}", budget=budget) for index, budget in enumerate((128, 512, 4096))]
    rates = list(weights_of([a_decode(member.instance, member=member) for member in members]).values())
    assert rates[0] < rates[1] == rates[2]


def test_one_weight_makes_the_others_1() -> None:
    """A rate is in tokens per second: beside it a weight of 2 would be nothing."""
    assert list(weights_of(weighted(2.0, None, None)).values()) == [2.0, 1.0, 1.0]


def test_one_without_costs_makes_all_alike() -> None:
    unknown = a_decode("d1", member=a_member("d1", costs=None))
    assert list(weights_of([a_decode("d0"), unknown]).values()) == [1.0, 1.0]


def test_the_weights_do_not_follow_the_load() -> None:
    """Who is dealt what is settled beforehand, unlike under the policies that predict."""
    throttled = a_decode("d0", cost_factor=8.0)
    assert len(set(weights_of([throttled, a_decode("d1")]).values())) == 1


def test_free_steps_have_a_base_only() -> None:
    costs = msgspec.structs.replace(COSTS, mixed=MixedStepCost(0.01, 0.0, 0.0, 0.0))
    [rate] = weights_of([a_decode(member=a_member("d0", costs=costs))]).values()
    assert rate == BUDGET / 0.01


# ---------------------------------------------------------------- who is refused, and other splits


def test_it_needs_a_d_and_no_p() -> None:
    assert "no decode instance" in str(POLICY.not_ready(a_mesh(a_prefill())))
    assert POLICY.not_ready(a_mesh(a_decode())) is None
    refusal = POLICY.refusal(a_request(), a_mesh(a_prefill()))
    assert refusal is not None
    assert refusal.kind is FailureKind.NO_INSTANCE
    assert POLICY.refusal(a_request(), a_mesh(a_decode())) is None


def test_what_nobody_holds_is_refused_not_queued() -> None:
    refusal = POLICY.refusal(a_request(1000), a_mesh(a_decode(member=a_member("d0", tokens=500))))
    assert refusal is not None
    assert refusal.kind is FailureKind.INVALID_REQUEST


def test_a_split_of_its_own_is_placed_as_fixed_does() -> None:
    mesh = a_mesh(a_prefill(), a_decode("d0", expected_tokens=7), a_decode("d1"))
    request = a_request(split=100)
    assert POLICY.needs_prefill(request)
    assert not POLICY.needs_prefill(a_request())
    placement = POLICY.place(request, mesh)
    assert placement == FixedPolicy(0).place(request, mesh)
    assert isinstance(placement, Placement)
    assert (placement.prefill, placement.decode, placement.split) == ("p0", "d1", 100)
    assert POLICY.refusal(request, a_mesh(a_decode())) == FixedPolicy(0).refusal(request, a_mesh(a_decode()))
