"""Policy disagg: unlike instances that know their costs get unlike shares."""

from services.scheduling.placement import Placement
from services.scheduling.policies.disaggregated import DisaggregatedPolicy
from services.scheduling.policies.routing import InstanceView
from tests.unit.scheduling.costs_case import a_decode, a_member, a_mesh, a_prefill
from tests.unit.scheduling.test_capacity import REQUEST
from tests.unit.scheduling.test_capacity_pairs import a_d, a_p


def place(*views: InstanceView) -> Placement:
    placement = DisaggregatedPolicy().place(REQUEST, a_mesh(*views))
    assert isinstance(placement, Placement), placement
    return placement


def test_p_computes_all_but_the_last_token() -> None:
    placement = place(a_p("p0"), a_d("d0"))
    assert (placement.prefill, placement.decode, placement.split) == ("p0", "d0", 99)


def test_the_d_that_would_be_through_first() -> None:
    """40 tokens to make at one, 20 at another that takes three times as long."""
    fast, slow = a_d("d0", decoding=40), a_d("d1", decoding=20, factor=3.0)
    assert place(a_p("p0"), fast, slow).decode == "d0"
    assert place(a_p("p0"), a_d("d0", decoding=400), slow).decode == "d1"


def test_the_p_that_would_be_done_first() -> None:
    """0.299 s with what is queued, against 0.495 s of an idle one that takes five times as long."""
    assert place(a_p("p0", 200), a_p("p1", factor=5.0), a_d("d0")).prefill == "p0"
    assert place(a_p("p0", 600), a_p("p1", factor=5.0), a_d("d0")).prefill == "p1"


def test_without_costs_the_least_loaded() -> None:
    plain = a_member("d1", costs=None)
    assert place(a_p("p0"), a_d("d0", decoding=40, prompts=5), a_decode("d1", member=plain)).decode == "d1"
    unknown = a_prefill("p1", member=a_member("p1", costs=None))
    assert place(a_p("p0", 600), unknown, a_d("d0")).prefill == "p1"
