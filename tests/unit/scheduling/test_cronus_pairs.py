"""The policy `cronus`: which pair of the mesh, and what the shortlist may hide."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from common.ids import InstanceId
from common.messages.control import LinkFigures
from services.scheduling.placement import Placement
from services.scheduling.policies.balancer import Balance, Split, SplitTask, choose_split
from services.scheduling.policies.candidates import Pairs, decode_candidate, prefill_candidate
from services.scheduling.policies.cronus import CronusPolicy, CronusSettings
from services.scheduling.policies.routing import MeshView
from services.scheduling.profiles.stage_times import DecodeLoad
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import COSTS, SLOTS, a_decode, a_member, a_mesh, a_prefill, a_request

SLOW = COSTS.scaled(4.0)
LOADS = st.builds(
    lambda decodes, mean, tokens, prompts: DecodeLoad(decodes, decodes * mean, tokens if prompts else 0, prompts),
    st.integers(0, SLOTS),
    st.integers(1, 1500),
    st.integers(1, 8000),
    st.integers(0, 4),
)
QUEUES = st.lists(st.integers(1, 4000), max_size=2)


@st.composite
def meshes(draw: st.DrawFn, most: int, *, one_class: bool) -> MeshView:
    """Up to `most` instances of each role, in any state of load."""
    factors = st.just(1.0) if one_class else st.sampled_from([0.5, 1.0, 1.3, 4.0])
    prefills = [
        a_prefill(f"p{number}", *draw(QUEUES), cost_factor=draw(factors))
        for number in range(draw(st.integers(1, most)))
    ]
    decodes = [
        a_decode(f"d{number}", draw(LOADS), cost_factor=draw(factors)) for number in range(draw(st.integers(1, most)))
    ]
    links = {
        (p.member.instance, d.member.instance): LinkFigures(
            "tcp", 1e9 if one_class else draw(st.floats(1e6, 1e10)), 1e-3
        )
        for p in prefills
        for d in decodes
    }
    return a_mesh(*prefills, *decodes, links=links)


REQUESTS = st.builds(a_request, st.integers(2, 3000), st.integers(1, 800))
BALANCES = st.sampled_from(list(Balance))


def place(request: RequestSpec, mesh: MeshView, balance: Balance = Balance.STAGES, shortlist: int = 3) -> Placement:
    placement = CronusPolicy(CronusSettings(balance=balance, shortlist=shortlist)).place(request, mesh)
    assert isinstance(placement, Placement)
    return placement


def all_splits(request: RequestSpec, mesh: MeshView, balance: Balance) -> list[Split]:
    """Of every pair, without shortlists."""
    task = SplitTask(len(request.prompt), float(request.max_tokens), most_tokens=100_000)
    pairs = Pairs(mesh)
    return [
        choose_split(task, pairs.pair(prefill_candidate(p), decode_candidate(d)), balance)
        for p in mesh.prefills
        for d in mesh.decodes
    ]


@given(REQUESTS, meshes(3, one_class=False), BALANCES)
def test_of_a_shortlist_of_pairs_it_takes_the_earliest_first_token(
    request: RequestSpec, mesh: MeshView, balance: Balance
) -> None:
    """Three of each are all on it by default. A D that is busy until after the best first token is not weighed."""
    splits = all_splits(request, mesh, balance)
    placement = place(request, mesh, balance)
    assert placement.candidates[0].split.first_token_s == min(split.first_token_s for split in splits)
    assert len(placement.candidates) <= len(splits)
    weighed = [candidate.split.first_token_s for candidate in placement.candidates]
    assert weighed == sorted(weighed)


@given(REQUESTS, meshes(7, one_class=True), BALANCES, st.integers(1, 3))
def test_the_shortlist_hides_no_better_pair_of_instances_of_one_class(
    request: RequestSpec, mesh: MeshView, balance: Balance, shortlist: int
) -> None:
    """In any state of load: equal costs, equal links."""
    splits = all_splits(request, mesh, balance)
    placement = place(request, mesh, balance, shortlist)
    assert placement.candidates[0].split.first_token_s == min(split.first_token_s for split in splits)


def test_a_shortlist_bounds_what_is_weighed() -> None:
    mesh = a_mesh(
        *[a_prefill(f"p{number}", 100 * number) for number in range(8)], *map(a_decode, map("d{}".format, range(8)))
    )
    placement = place(a_request(), mesh, shortlist=2)
    assert len(placement.candidates) == 8 + 2
    assert {candidate.prefill for candidate in placement.candidates} == {"p0", "p1"}


def test_idle_slow_instances_do_not_hide_a_quick_one_with_little_to_do() -> None:
    slow = [a_prefill(f"p{number}", member=a_member(f"p{number}", costs=SLOW)) for number in range(5)]
    mesh = a_mesh(*slow, a_prefill("p5", 200), *[a_decode("d0", DecodeLoad(prefill_tokens=5000, prompts=2))])
    assert place(a_request(2000), mesh).prefill == "p5"


def test_an_idle_d_is_weighed_with_every_p_of_the_shortlist() -> None:
    """The last of six, and best with the P that is second by itself but has the better link."""
    busy = [a_decode(f"d{number}", DecodeLoad(prefill_tokens=50_000, prompts=9)) for number in range(5)]
    mesh = a_mesh(a_prefill("p0"), a_prefill("p1", 50), *busy, a_decode("d5"))
    links = {
        (p.member.instance, d.member.instance): LinkFigures("tcp", 1e6 if p.member.instance == "p0" else 1e10, 0.0)
        for p in mesh.prefills
        for d in mesh.decodes
    }
    placement = place(a_request(2000), msgspec.structs.replace(mesh, links=links))
    assert (placement.prefill, placement.decode) == ("p1", "d5")
    assert {candidate.decode for candidate in placement.candidates} == {"d5"}, "the busy ones need not be weighed"


def test_the_measured_link_is_part_of_the_choice() -> None:
    links = {
        (InstanceId("p0"), InstanceId("d0")): LinkFigures("tcp", 1e6, 0.01),
        (InstanceId("p1"), InstanceId("d0")): LinkFigures("shm", 1e10, 0.0),
    }
    mesh = a_mesh(a_prefill("p0"), a_prefill("p1", 100), a_decode(), links=links)
    assert place(a_request(), mesh).prefill == "p1"
    assert place(a_request(), msgspec.structs.replace(mesh, links={})).prefill == "p0"


def test_among_equals_the_first_is_taken() -> None:
    mesh = a_mesh(a_prefill("p0"), a_prefill("p1"), a_decode("d0"), a_decode("d1"))
    placement = place(a_request(), mesh)
    assert (placement.prefill, placement.decode) == ("p0", "d0")
