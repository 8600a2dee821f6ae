"""The policy `capacity` in a mesh with prefill instances: when they help, and when they are worth waiting for."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import InstanceId
from common.messages.control import LinkFigures
from services.scheduling.ledgers.work_ledger import Mix, Work
from services.scheduling.placement import Candidate, Placement
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.candidates import decode_candidate
from services.scheduling.policies.capacity import CapacityPolicy, CapacitySettings
from services.scheduling.policies.capacity_target import Demand, Target
from services.scheduling.policies.routing import InstanceView, MeshView, Wait
from services.scheduling.profiles.stage_times import DecodeLoad
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import TOKEN_BYTES, a_decode, a_member, a_mesh, a_prefill, a_request
from tests.unit.scheduling.test_capacity import EVEN, POLICY, REQUEST

WAIT_P = Wait("a free slot at a prefill instance")


def a_p(name: str, *queued: int, factor: float = 1.0, has_room: bool = True) -> InstanceView:
    """A millisecond per token, times `factor`; 10 ms at least."""
    return a_prefill(name, *queued, member=a_member(name, costs=EVEN.scaled(factor)), has_room=has_room)


def a_d(name: str, prompts: int = 0, decoding: int = 0, *, factor: float = 1.0) -> InstanceView:
    """With so many tokens of one prompt to compute, and so many of one answer to come; 10 ms each, times `factor`."""
    count = int(prompts > 0) + int(decoding > 0)
    load = DecodeLoad(int(decoding > 0), 100 * int(decoding > 0), prompts, int(prompts > 0))
    work = Work(prompts, decoding, decoding * decoding, 100 * count, Mix(count, 100 * count, 100 * count, 50 * count))
    return a_decode(name, load, member=a_member(name, costs=EVEN.scaled(factor)), work=work)


def place(*views: InstanceView, request: RequestSpec = REQUEST, settings: CapacitySettings | None = None) -> Placement:
    placement = CapacityPolicy(settings).place(request, a_mesh(*views))
    assert isinstance(placement, Placement), placement
    assert placement.kv_bytes == placement.split * TOKEN_BYTES
    assert (placement.prefill is None) == (placement.split == 0)
    return placement


def test_p_helps_where_that_wins() -> None:
    """Alone 1 s for the prompt; with P 0.099 s for 99 tokens of it, and 0.01 s for the last."""
    placement = place(a_p("p0"), a_d("d0"))
    assert (placement.prefill, placement.decode, placement.split) == ("p0", "d0", 99)
    assert [(candidate.prefill, candidate.decode) for candidate in placement.candidates] == [("p0", "d0"), (None, "d0")]


def test_a_slow_p_is_left_alone() -> None:
    assert place(a_p("p0", factor=50.0), a_d("d0")).prefill is None


def test_one_token_needs_no_p() -> None:
    assert place(a_p("p0"), a_d("d0"), request=a_request(1, 50)).prefill is None


def test_a_p_without_costs_is_no_p() -> None:
    assert place(a_prefill("p0", member=a_member("p0", costs=None)), a_d("d0")).prefill is None


def test_without_the_work_no_p_is_used() -> None:
    assert place(a_p("p0"), a_d("d0"), settings=CapacitySettings(counts_work=False)).prefill is None


@pytest.mark.parametrize("queued", [(100, 100), (400, 400)])
def test_a_p_without_a_slot_is_worth_waiting_for(queued: tuple[int, ...]) -> None:
    """It hands over after 0.2 + 0.099 s (0.8 + 0.099), and saves an idle D 0.99 s."""
    mesh = a_mesh(a_p("p0", *queued, has_room=False), a_d("d0"))
    assert POLICY.place(REQUEST, mesh) == WAIT_P


def test_it_is_not_where_d_would_only_wait_for_it() -> None:
    full = a_p("p0", 500, 500, has_room=False)
    assert place(full, a_d("d0")).prefill is None
    assert POLICY.place(REQUEST, a_mesh(full, a_d("d0", prompts=200))) == WAIT_P, "2 s of prompts come first there"


def test_a_busy_p_does_not_hold_up_an_idle_d() -> None:
    """Eight decode instances beside one P: it helps one of them, and the others do without."""
    idle = [a_d(f"d{number}") for number in range(8)]
    assert place(a_p("p0", 1000, 1000, has_room=False), *idle).prefill is None


def test_a_place_that_is_through_sooner_alone_beats_a_pair() -> None:
    """The pair has the slow D: 0.099 s at P, then 0.03 s and 1.5 s there. d0 has 0.1 s of work before 1.5 s."""
    slow, quick = a_d("d1", factor=3.0), a_d("d0", decoding=10)
    links = {(InstanceId("p0"), InstanceId("d0")): LinkFigures("tcp", 1.0, 9.0)}
    placement = POLICY.place(REQUEST, a_mesh(a_p("p0"), slow, quick, links=links))
    assert isinstance(placement, Placement)
    assert (placement.prefill, placement.decode) == (None, "d0")


def test_the_least_busy_p_helps() -> None:
    placement = place(a_p("p0", 500), a_p("p1", 100), a_p("p2", factor=9.0), a_d("d0"))
    assert placement.prefill == "p1"
    assert {candidate.prefill for candidate in placement.candidates} == {"p0", "p1", "p2", None}


def test_a_shortlist_bounds_what_is_weighed() -> None:
    views = [a_p(f"p{number}") for number in range(6)] + [a_d(f"d{number}", decoding=number) for number in range(6)]
    assert len(place(*views, settings=CapacitySettings(shortlist=2)).candidates) == 2 + 2 * 2


def test_what_p_cannot_hold_stays_at_d() -> None:
    small = a_prefill("p0", member=a_member("p0", costs=EVEN, tokens=50))
    assert place(small, a_d("d0")).split == 50


# ---------------------------------------------------------------- any mesh


COUNTS = st.integers(0, 400)
FACTORS = st.sampled_from([0.5, 1.0, 3.0])


@st.composite
def meshes(draw: st.DrawFn) -> MeshView:
    prefills = [
        a_p(f"p{number}", *draw(st.lists(st.integers(1, 900), max_size=2)), factor=draw(FACTORS))
        for number in range(draw(st.integers(0, 3)))
    ]
    decodes = [
        a_d(f"d{number}", draw(COUNTS), draw(COUNTS), factor=draw(FACTORS)) for number in range(draw(st.integers(1, 3)))
    ]
    return a_mesh(*prefills, *decodes)


def score(candidate: Candidate, request: RequestSpec, mesh: MeshView) -> float:
    """(Q + w + what D waits for P in its free part) · g, from the split that is told."""
    [view] = [view for view in mesh.decodes if view.member.instance == candidate.decode]
    target = Target.of(view, Demand.of(request, mesh), 0.8)
    split, saved_s, late_s = candidate.split, 0.0, 0.0
    if candidate.prefill is not None:
        saved_s = split.tokens * target.rates.prompt_s
        late_s = max(0.0, split.first_token_s - split.decode_s - decode_candidate(view).busy.backlog_s)
    return (target.queued_s + target.added_s - saved_s + late_s * target.idle) * target.pressure


@given(meshes(), st.integers(1, 600), st.integers(1, 200), st.sampled_from([None, *Balance]))
def test_all_that_is_weighed_stands_in_the_order_of_its_score(
    mesh: MeshView, prompt: int, output: int, balance: Balance | None
) -> None:
    """Three of each are all on the shortlists."""
    request = a_request(prompt, output)
    placement = CapacityPolicy(CapacitySettings(balance=balance)).place(request, mesh)
    assert isinstance(placement, Placement)
    scores = [score(candidate, request, mesh) for candidate in placement.candidates]
    assert scores == sorted(scores)
    assert {candidate.decode for candidate in placement.candidates} == {view.member.instance for view in mesh.decodes}
    chosen = placement.candidates[0]
    assert (chosen.prefill, chosen.decode, chosen.split.tokens if chosen.prefill else 0) == (
        placement.prefill,
        placement.decode,
        placement.split,
    )


@given(meshes(), st.integers(1, 600))
def test_the_same_question_has_the_same_answer(mesh: MeshView, prompt: int) -> None:
    turned = msgspec.structs.replace(mesh, prefills=mesh.prefills[::-1], decodes=mesh.decodes[::-1])
    request = a_request(prompt, 50)
    assert POLICY.place(request, mesh) == POLICY.place(request, mesh)
    first, second = POLICY.place(request, mesh), POLICY.place(request, turned)
    assert isinstance(first, Placement)
    assert isinstance(second, Placement)
    assert score(first.candidates[0], request, mesh) == pytest.approx(score(second.candidates[0], request, turned))
