"""The policies that do not ask what an instance can do."""

from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from common.errors import FailureKind
from services.scheduling.ledgers.work_ledger import Work
from services.scheduling.placement import Placement
from services.scheduling.policies.dealing import (
    LeastKVPolicy,
    PowerOfTwoPolicy,
    RandomPolicy,
    RoundRobinPolicy,
    ShortestQueuePolicy,
)
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.registry import WHOLE_ONLY, load_policy
from services.scheduling.policies.routing import InstanceView, PlacementPolicy, Wait
from services.scheduling.profiles.stage_times import DecodeLoad
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import COSTS, a_decode, a_member, a_mesh, a_prefill, a_request

NAMES = sorted(WHOLE_ONLY)
BLIND, SIGHTED = ["round_robin", "random", "dp"], ["jsq", "power_of_two", "least_kv"]


def queues(*requests: int, **facts: bool) -> list[InstanceView]:
    return [a_decode(f"d{number}", DecodeLoad(decodes=count), **facts) for number, count in enumerate(requests)]


def decode_of(policy: PlacementPolicy, views: list[InstanceView], request: RequestSpec | None = None) -> str:
    placement = policy.place(request or a_request(), a_mesh(*views, a_prefill()))
    assert isinstance(placement, Placement)
    assert (placement.prefill, placement.split, placement.kv_bytes, placement.candidates) == (None, 0, 0, ())
    return placement.decode


def dealt(policy: PlacementPolicy, views: list[InstanceView], requests: int) -> list[str]:
    names: list[str] = []
    for number in range(requests):
        names.append(decode_of(policy, views, a_request(name=f"r{number}")))
        views = [
            msgspec.structs.replace(view, placed=view.placed + (view.member.instance == names[-1])) for view in views
        ]
    return names


# ---------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("name", NAMES)
def test_whole_requests_need_a_d_and_no_p(name: str) -> None:
    policy = load_policy(name, "full")
    assert not policy.needs_prefill(a_request())
    assert policy.not_ready(a_mesh(a_decode())) is None
    assert "no decode instance" in str(policy.not_ready(a_mesh(a_prefill())))
    refusal = policy.refusal(a_request(), a_mesh(a_prefill()))
    assert refusal is not None
    assert refusal.kind is FailureKind.NO_INSTANCE
    assert decode_of(policy, [a_decode("d7")]) == "d7"


@pytest.mark.parametrize("name", NAMES)
def test_what_nobody_holds_is_refused(name: str) -> None:
    refusal = load_policy(name, "full").refusal(a_request(1000), a_mesh(a_decode(member=a_member("d0", tokens=500))))
    assert refusal is not None
    assert refusal.kind is FailureKind.INVALID_REQUEST


@pytest.mark.parametrize("name", NAMES)
def test_only_those_that_can_hold_it_are_asked(name: str) -> None:
    small = [a_decode(f"d{number}", member=a_member(f"d{number}", tokens=500)) for number in range(3)]
    for number in range(10):
        assert decode_of(load_policy(name, "full"), [*small, a_decode("d9")], a_request(name=str(number))) == "d9"


@pytest.mark.parametrize("name", NAMES)
def test_a_split_of_its_own_is_placed_as_fixed_does(name: str) -> None:
    mesh = a_mesh(a_prefill(), a_decode("d0", expected_tokens=7), a_decode("d1"))
    request = a_request(split=100)
    policy = load_policy(name, "full")
    assert policy.needs_prefill(request)
    assert policy.place(request, mesh) == FixedPolicy(0).place(request, mesh)
    assert policy.refusal(request, a_mesh(a_decode())) == FixedPolicy(0).refusal(request, a_mesh(a_decode()))


@pytest.mark.parametrize("name", NAMES)
def test_costs_do_not_matter_but_to_dp(name: str) -> None:
    def names(views: list[InstanceView]) -> list[str]:
        return dealt(load_policy(name, "full"), views, 12)

    slow = a_decode("d1", member=a_member("d1", costs=COSTS.scaled(9.0)))
    unknown = a_decode("d1", member=a_member("d1", costs=None))
    assert (names([a_decode("d0"), slow]) == names([a_decode("d0"), unknown])) is (name != "dp")


@pytest.mark.parametrize("name", BLIND)
def test_the_blind_wait_for_the_one_that_it_falls_to(name: str) -> None:
    policy, views = load_policy(name, "full"), queues(0, 0, 0)
    chosen = decode_of(policy, views)
    full = [msgspec.structs.replace(view, has_room=view.member.instance != chosen) for view in views]
    assert policy.place(a_request(), a_mesh(*full)) == Wait(f"room at decode instance {chosen!r}")


@pytest.mark.parametrize("name", SIGHTED)
def test_the_others_take_who_has_room(name: str) -> None:
    policy = load_policy(name, "full")
    views = [*queues(0, 0, has_room=False), a_decode("d2", DecodeLoad(decodes=50))]
    assert decode_of(policy, views) == "d2"
    assert policy.place(a_request(), a_mesh(*views[:2])) == Wait("room at a decode instance")


# ---------------------------------------------------------------- each by itself


def test_in_turn() -> None:
    assert dealt(RoundRobinPolicy(), queues(9, 0, 5), 7) == ["d0", "d1", "d2", "d0", "d1", "d2", "d0"]


def test_in_turn_whatever_the_weights() -> None:
    views = [a_decode(name, member=a_member(name, weight=weight)) for name, weight in (("d0", 5.0), ("d1", 1.0))]
    assert dealt(RoundRobinPolicy(), views, 4) == ["d0", "d1", "d0", "d1"]


def test_by_lot_everybody_gets_about_as_much() -> None:
    counts = Counter(dealt(RandomPolicy(), queues(0, 0, 0, 0), 2000))
    assert set(counts) == {"d0", "d1", "d2", "d3"}
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in counts.values())


def test_a_lot_is_drawn_once_for_each_request() -> None:
    policy, views = RandomPolicy(), queues(0, 0, 0, 0)
    first = [decode_of(policy, views, a_request(name=str(number))) for number in range(50)]
    assert first == [decode_of(RandomPolicy(), views, a_request(name=str(number))) for number in range(50)]
    assert any(one != other for one, other in pairwise(first))


def test_the_fewest_requests() -> None:
    assert decode_of(ShortestQueuePolicy(), queues(3, 1, 2)) == "d1"
    assert decode_of(ShortestQueuePolicy(), queues(2, 1, 1)) == "d1"


def test_of_two_by_lot_the_shorter_queue() -> None:
    """Never the longest; everybody else gets something, the shortest most: half, as half of all pairs have it."""
    counts = Counter(dealt(PowerOfTwoPolicy(), queues(3, 0, 2, 1), 1200))
    assert set(counts) == {"d1", "d2", "d3"}
    for name, share in (("d1", 1 / 2), ("d3", 1 / 3), ("d2", 1 / 6)):
        assert abs(counts[name] / 1200 - share) < 0.08


def test_one_needs_no_lot() -> None:
    assert decode_of(PowerOfTwoPolicy(), queues(5)) == "d0"


def test_the_least_share_of_memory() -> None:
    """300 of 10,000 tokens are less than 20 of 200."""
    large = a_decode("d0", member=a_member("d0", tokens=10_000), work=Work(kv_tokens=300))
    small = a_decode("d1", member=a_member("d1", tokens=200), work=Work(kv_tokens=20))
    assert decode_of(LeastKVPolicy(), [small, large], a_request(50)) == "d0"
    assert LeastKVPolicy.counts_tokens
