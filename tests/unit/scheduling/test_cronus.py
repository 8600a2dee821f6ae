"""The policy `cronus`: what it waits for, whom it uses, how it splits; test_cronus_pairs has which pair."""

import msgspec
import pytest

from common.errors import FailureKind
from services.scheduling.placement import Placement
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.cronus import CronusPolicy, CronusSettings
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import MeshView, Wait
from services.scheduling.profiles.stage_times import DecodeLoad
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import (
    COSTS,
    SLOTS,
    TOKEN_BYTES,
    a_decode,
    a_member,
    a_mesh,
    a_prefill,
    a_request,
)

POLICY = CronusPolicy()
STAGES, FINISH = (
    CronusPolicy(CronusSettings(balance=Balance.STAGES)),
    CronusPolicy(CronusSettings(balance=Balance.FINISH)),
)
WAIT_P, WAIT_D = Wait("a free slot at a prefill instance"), Wait("room at a decode instance")


def place(request: RequestSpec, mesh: MeshView, policy: CronusPolicy = POLICY) -> Placement:
    placement = policy.place(request, mesh)
    assert isinstance(placement, Placement)
    assert (placement.prefill is None) == (placement.split == 0)
    assert placement.kv_bytes == placement.split * TOKEN_BYTES
    assert placement.candidates[0].decode == placement.decode
    assert placement.candidates[0].split.tokens == placement.split
    return placement


# ---------------------------------------------------------------- waiting


def test_it_waits_while_no_p_has_a_slot() -> None:
    full = [a_prefill(name, has_room=False) for name in ("p0", "p1")]
    assert POLICY.place(a_request(), a_mesh(*full, a_decode())) == WAIT_P
    free = a_prefill("p2", *[100_000] * 2)
    assert place(a_request(), a_mesh(*full, free, a_decode()), STAGES).prefill == "p2"


def test_one_token_needs_no_p() -> None:
    """It waits in the line of those that need none, and so must not wait for one."""
    request = a_request(1)
    assert not POLICY.needs_prefill(request)
    assert POLICY.needs_prefill(a_request(2))
    placement = place(request, a_mesh(a_prefill(has_room=False), a_decode()))
    assert (placement.prefill, placement.decode, placement.split) == (None, "d0", 0)


def test_it_waits_while_no_d_takes_one_more() -> None:
    mesh = a_mesh(a_prefill(), a_decode("d0", has_room=False))
    assert POLICY.place(a_request(), mesh) == WAIT_D


@pytest.mark.parametrize(
    ("expected_tokens", "expected_output", "choices", "has_room"),
    [
        (7000, 500.0, 1, True),
        (7001, 500.0, 1, False),
        (7000, None, 1, False),
        (6000, None, 1, True),
        (6000, 9000.0, 1, True),
        (6001, 9000.0, 1, False),
        (7000, 250.0, 2, True),
        (7000, 251.0, 2, False),
    ],
)
def test_d_has_room_for_what_it_is_expected_to_come_to(
    expected_tokens: int, expected_output: float | None, choices: int, has_room: bool
) -> None:
    """8500 tokens; a prompt of 1000 and at most 1500 more per choice, of which as many are expected."""
    decode = a_decode(load=DecodeLoad(decodes=1), member=a_member("d0", tokens=8500), expected_tokens=expected_tokens)
    mesh = a_mesh(a_prefill(), decode, expected_output=expected_output)
    answer = POLICY.place(a_request(1000, 1500, choices=choices), mesh)
    assert (answer == WAIT_D) is not has_room


def test_an_idle_d_takes_whatever_fits_at_all() -> None:
    """Three choices of 4000 tokens do not fit beside each other; its engine preempts."""
    idle = a_decode(member=a_member("d0", tokens=5000))
    request = a_request(1000, 4000, choices=3)
    assert place(request, a_mesh(a_prefill(), idle)).decode == "d0"
    busy = a_decode(load=DecodeLoad(decodes=1), member=a_member("d0", tokens=5000), expected_tokens=1)
    assert POLICY.place(request, a_mesh(a_prefill(), busy)) == WAIT_D


def test_a_d_that_can_never_hold_it_is_passed_over() -> None:
    small = a_decode("d0", member=a_member("d0", tokens=1009))
    assert place(a_request(1000, 10), a_mesh(a_prefill(), small, a_decode("d1"))).decode == "d1"


# ---------------------------------------------------------------- members without costs


def test_members_without_costs_are_not_used() -> None:
    unknown = [a_prefill("p0", member=a_member("p0", costs=None)), a_decode("d0", member=a_member("d0", costs=None))]
    known = [a_prefill("p1", 50_000), a_decode("d1", DecodeLoad(50, 100_000, 9000, 3))]
    placement = place(a_request(), a_mesh(*unknown, *known), STAGES)
    assert (placement.prefill, placement.decode) == ("p1", "d1")
    assert {(candidate.prefill, candidate.decode) for candidate in placement.candidates} == {("p1", "d1")}


def test_a_p_without_costs_is_no_p() -> None:
    unknown = a_prefill("p0", member=a_member("p0", costs=None), has_room=False)
    assert place(a_request(), a_mesh(unknown, a_decode())).prefill is None


def test_without_costs_at_d_nothing_is_served() -> None:
    mesh = a_mesh(a_prefill(), a_decode("d0", member=a_member("d0", costs=None)))
    assert "self_profile" in str(POLICY.not_ready(mesh))
    refusal = POLICY.refusal(a_request(), mesh)
    assert refusal is not None
    assert refusal.kind is FailureKind.NO_INSTANCE
    assert POLICY.not_ready(a_mesh(a_decode("d1"), *mesh.decodes)) is None


def test_a_request_that_only_a_d_without_costs_holds_is_refused_not_queued_for_ever() -> None:
    large = a_decode("d0", member=a_member("d0", costs=None, tokens=5000))
    small = a_decode("d1", member=a_member("d1", tokens=500))
    refusal = POLICY.refusal(a_request(1000), a_mesh(large, small))
    assert refusal is not None
    assert refusal.kind is FailureKind.INVALID_REQUEST
    assert "holds 500" in refusal.message
    assert POLICY.refusal(a_request(400), a_mesh(large, small)) is None


# ---------------------------------------------------------------- without P, and with a split of its own


def test_without_a_p_the_d_with_the_earliest_first_token_does_it_all() -> None:
    loads = [DecodeLoad(prefill_tokens=500 * count, prompts=1) for count in (5, 3, 1, 2, 4)]
    mesh = a_mesh(*[a_decode(f"d{number}", load) for number, load in enumerate(loads)])
    placement = place(a_request(), mesh)
    assert (placement.prefill, placement.decode, placement.split) == (None, "d2", 0)
    assert placement.candidates[0].prefill is None


@pytest.mark.parametrize("split", [0, 100, 0.5, "full"])
def test_a_split_of_its_own_is_placed_as_fixed_does(split: str | int | float) -> None:
    fixed, request = FixedPolicy("full"), a_request(split=split)
    meshes = [
        a_mesh(a_prefill("p0", 5), a_prefill("p1"), a_decode("d0", expected_tokens=9), a_decode("d1")),
        a_mesh(a_prefill(has_room=False), a_decode()),
        a_mesh(a_prefill(member=a_member("p0", costs=None)), a_decode(member=a_member("d0", costs=None))),
    ]
    for mesh in meshes:
        assert POLICY.place(request, mesh) == fixed.place(request, mesh)
        assert POLICY.refusal(request, mesh) == fixed.refusal(request, mesh)
    assert POLICY.needs_prefill(request) == fixed.needs_prefill(request)


# ---------------------------------------------------------------- the split


def test_it_splits_for_the_earliest_first_token_unless_told_to_balance() -> None:
    mesh = a_mesh(a_prefill(), a_decode())
    split = CronusPolicy().place(a_request(), mesh)
    assert split == place(a_request(), mesh, FINISH)
    assert split != place(a_request(), mesh, STAGES)


@pytest.mark.parametrize("balance", [FINISH, STAGES])
def test_p_is_asked_for_no_more_than_it_holds(balance: Balance) -> None:
    instant = COSTS.scaled(1e-6)
    prefill = a_prefill(member=a_member("p0", costs=instant, tokens=330))
    assert place(a_request(), a_mesh(prefill, a_decode()), balance).split == 330
    whole = a_mesh(a_prefill(member=a_member("p0", costs=instant)), a_decode())
    assert place(a_request(), whole, balance).split == 999


def test_a_p_that_helps_nobody_gets_no_part_and_keeps_its_slot() -> None:
    prefill = a_prefill(member=a_member("p0", costs=COSTS.scaled(1e6)))
    placement = place(a_request(), a_mesh(prefill, a_decode()), STAGES)
    assert (placement.prefill, placement.split, placement.kv_bytes) == (None, 0, 0)


def test_what_an_instance_says_of_its_speed_changes_the_split() -> None:
    def split(prefill: float, decode: float) -> int:
        views = a_prefill(cost_factor=prefill), a_decode(cost_factor=decode)
        return place(a_request(3000), a_mesh(*views), STAGES).split

    assert split(2.0, 1.0) < split(1.0, 1.0) < split(1.0, 2.0)
    assert split(2.0, 2.0) == split(1.0, 1.0)


def test_what_an_instance_says_of_its_speed_changes_the_pair() -> None:
    throttled = a_prefill("p0", cost_factor=3.0), a_decode("d0", cost_factor=3.0)
    placement = place(a_request(3000), a_mesh(*throttled, a_prefill("p1"), a_decode("d1")), STAGES)
    assert (placement.prefill, placement.decode) == ("p1", "d1")


def test_the_expected_answer_is_part_of_the_balance_unless_told_otherwise() -> None:
    mesh = a_mesh(a_prefill(), a_decode(load=DecodeLoad(SLOTS, 500 * SLOTS)), expected_output=800.0)
    ignoring = CronusPolicy(CronusSettings(balance=Balance.STAGES, counts_decoding=False))
    request = a_request(2000, 5000)
    ignored, counted = place(request, mesh, ignoring).split, place(request, mesh, STAGES).split
    assert ignored < counted
    assert place(a_request(2000, 1), mesh, STAGES).split == ignored, "a request may ask for less than is expected"
    assert place(msgspec.structs.replace(request, choices=2), mesh, STAGES).split > counted, "each takes a slot"
