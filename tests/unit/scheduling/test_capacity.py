"""The policy `capacity` among decode instances, with scores that a person can add up; test_capacity_pairs has P."""

import msgspec
import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.errors import FailureKind
from services.scheduling.ledgers.work_ledger import Mix, Share, Work
from services.scheduling.placement import Placement
from services.scheduling.policies.capacity import CapacityPolicy, CapacitySettings
from services.scheduling.policies.capacity_target import Demand, Target, pressure_of, shared_finish_s
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import InstanceView, MeshView, Wait
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import a_decode, a_member, a_mesh, a_prefill, a_request

EVEN = InstanceCosts(
    prefill=PrefillCost(base=0.0, per_token=0.001),
    mixed=MixedStepCost(base=0.0, per_token=0.01, per_chunk_context=0.0, per_decode_context=0.0),
    decode=DecodeStepCost(base=0.0, per_sequence=0.01, per_context=0.0),
)
"""A token takes a decode instance 10 ms, of a prompt or of an answer, whatever its batch."""
POLICY = CapacityPolicy()
WAIT = Wait("room at a decode instance")
REQUEST = a_request(100, 50)
"""1.5 s of work."""


def an_instance(
    name: str,
    seconds: float = 0.0,
    *,
    factor: float = 1.0,
    kv: int = 0,
    sequences: int | None = None,
    tokens: int = 100_000,
    max_batch: int = 64,
    has_room: bool = True,
) -> InstanceView:
    """With so many seconds of work at hand, `factor` times as slow as by EVEN, and so many tokens of KV held."""
    output = round(seconds / factor / 0.01)
    count = sequences if sequences is not None else int(output > 0 or kv > 0)
    mean = output // max(1, count)
    work = Work(0, output, count * mean * mean, kv, Mix(count, count * 100, count * 100, count * 50))
    member = a_member(name, costs=EVEN.scaled(factor), tokens=tokens, max_batch=max_batch)
    return a_decode(name, member=member, work=work, has_room=has_room)


def decode_of(*views: InstanceView, request: RequestSpec = REQUEST, settings: CapacitySettings | None = None) -> str:
    placement = CapacityPolicy(settings).place(request, a_mesh(*views))
    assert isinstance(placement, Placement), placement
    assert (placement.prefill, placement.split, placement.kv_bytes) == (None, 0, 0)
    assert placement.candidates[0].decode == placement.decode
    return placement.decode


# ---------------------------------------------------------------- work


@pytest.mark.parametrize(("at_fast_s", "chosen"), [(0.0, "d0"), (2.9, "d0"), (3.1, "d1")])
def test_the_slow_one_is_chosen_when_the_fast_one_has_so_much_more_to_do(at_fast_s: float, chosen: str) -> None:
    """The slow one takes 4.5 s for the request: 2.9 + 1.5 = 4.4, 3.1 + 1.5 = 4.6."""
    assert decode_of(an_instance("d0", at_fast_s), an_instance("d1", factor=3.0)) == chosen


@pytest.mark.parametrize(("at_fast_s", "chosen"), [(3.8, "d0"), (4.0, "d1")])
def test_work_is_in_the_seconds_of_the_instance(at_fast_s: float, chosen: str) -> None:
    """0.9 s are 30 tokens at the slow one: through after 0.9 + 4.5 s, where the fast one takes 1.5 s."""
    assert decode_of(an_instance("d0", at_fast_s), an_instance("d1", 0.9, factor=3.0), request=REQUEST) == chosen


def test_an_instance_that_has_become_slow_is_priced_by_what_its_steps_take_now() -> None:
    throttled = msgspec.structs.replace(an_instance("d0"), load=a_decode(cost_factor=2.0).load)
    assert decode_of(throttled, an_instance("d1", 1.4)) == "d1"
    assert decode_of(throttled, an_instance("d1", 1.6)) == "d0"


def test_prompts_to_compute_are_work_too() -> None:
    prompts = msgspec.structs.replace(an_instance("d0"), work=Work(200, 0, 0, 200, Mix(1, 200, 200, 0)))
    assert decode_of(prompts, an_instance("d1", 1.9)) == "d1"
    assert decode_of(prompts, an_instance("d1", 2.1)) == "d0"


@pytest.mark.parametrize(("expected", "chosen"), [(None, "d0"), (50.0, "d0"), (10.0, "d1"), (9000.0, "d0")])
def test_the_expected_length_counts_up_to_what_the_request_allows(expected: float | None, chosen: str) -> None:
    """3.0 s at the fast one; the slow one takes 4.5 s for 100 + 50 tokens, and 3.3 s for 100 + 10."""
    mesh = a_mesh(an_instance("d0", 2.5), an_instance("d1", factor=3.0), expected_output=expected)
    placement = POLICY.place(REQUEST, mesh)
    assert isinstance(placement, Placement)
    assert placement.decode == chosen


def test_among_equals_the_first_by_id() -> None:
    assert decode_of(an_instance("d1"), an_instance("d0"), an_instance("d2")) == "d0"


def test_the_traffic_of_the_whole_mesh_says_what_a_token_costs() -> None:
    demand = Demand.of(REQUEST, a_mesh(an_instance("d0", 1.0, sequences=2), an_instance("d1", 1.0, sequences=3)))
    assert demand.mix == Mix(sequences=6, prompt_tokens=600, kv_tokens=600, output_tokens=300)
    assert demand.work == Work.of(Share(100, 100, 50, 50))


# ---------------------------------------------------------------- memory


def test_pressure_rises_from_u0_to_no_bound() -> None:
    assert [pressure_of(use, 0.8) for use in (0.0, 0.8)] == [1.0, 1.0]
    assert pressure_of(0.9, 0.8) == pytest.approx(2.0)
    assert pressure_of(0.96, 0.8) == pytest.approx(5.0)
    assert pressure_of(1.0, 0.8) == pressure_of(1.2, 0.8) == float("inf")
    assert pressure_of(0.5, 0.0) == pytest.approx(2.0)


@pytest.mark.parametrize(("elsewhere_s", "chosen"), [(0.4, "d1"), (0.6, "d0")])
def test_memory_that_fills_counts_as_work(elsewhere_s: float, chosen: str) -> None:
    """750 + 100 of 1000 tokens: g = 0.2 / 0.15, and 1.5 s become 2.0 s."""
    assert decode_of(an_instance("d0", kv=750, tokens=1000), an_instance("d1", elsewhere_s)) == chosen


def test_u0_says_from_where_memory_counts() -> None:
    views = an_instance("d0", kv=750, tokens=1000), an_instance("d1", 0.1)
    assert decode_of(*views) == "d1"
    assert decode_of(*views, settings=CapacitySettings(free_use=0.9)) == "d0"


def test_what_an_answer_will_grow_to_takes_room_too() -> None:
    """500 tokens are held. Where 500 more are to come in a single answer, 6.5 s are as good as 9.8 s."""
    elsewhere = an_instance("d1", 7.0)
    assert decode_of(an_instance("d0", 5.0, kv=500, tokens=1000), elsewhere) == "d1"
    assert decode_of(an_instance("d0", 5.0, kv=500, tokens=2000), elsewhere) == "d0"


def test_it_waits_while_nobody_has_room_for_its_kv() -> None:
    full = an_instance("d0", kv=950, tokens=1000), an_instance("d1", kv=905, tokens=1000, factor=3.0)
    assert POLICY.place(REQUEST, a_mesh(*full)) == WAIT
    assert decode_of(*full, an_instance("d2", 500.0)) == "d2"


def test_an_idle_one_takes_whatever_it_can_hold_at_all() -> None:
    """Three choices of 800 tokens do not fit beside each other; its engine preempts."""
    request = a_request(100, 800, choices=3)
    assert decode_of(an_instance("d0", tokens=1000), request=request) == "d0"
    assert POLICY.place(request, a_mesh(an_instance("d0", 0.01, tokens=1000))) == WAIT
    assert decode_of(an_instance("d0", tokens=899), an_instance("d1", 9.0, tokens=5000), request=request) == "d1"


# ---------------------------------------------------------------- who begins at once, and who queues where


def test_who_has_a_place_in_its_batch_comes_first() -> None:
    """Of two sequences at once, with one ahead: the third waits at most for its turn, a fourth would be in a queue."""
    fast = [an_instance("d0", 0.3, sequences=count, max_batch=2) for count in (2, 3)]
    slow = an_instance("d1", 9.0, factor=3.0, sequences=2, max_batch=2)
    assert decode_of(fast[0], slow) == "d0"
    slow = an_instance("d1", 2.0, factor=3.0, sequences=2, max_batch=2)
    assert decode_of(fast[1], slow) == "d0", "there it queues, and is through after 1.8 s and not 6.5 s"
    even = an_instance("d1", 0.4, sequences=2, max_batch=2)
    assert decode_of(fast[1], even) == "d0"
    assert decode_of(an_instance("d0", 0.5, sequences=3, max_batch=2), even) == "d1"


@pytest.mark.parametrize(("at_slow_s", "chosen"), [(5.0, "d0"), (0.3, "d1")])
def test_a_request_queues_only_where_it_is_through_first(at_slow_s: float, chosen: str) -> None:
    """Both batches are full. At the fast one it is through after 5.5 s, at the slow one 4.5 s after what is there."""
    fast = an_instance("d0", 4.0, sequences=3, max_batch=2)
    slow = an_instance("d1", at_slow_s, factor=3.0, sequences=3, max_batch=2)
    assert decode_of(fast, slow) == chosen


def test_it_waits_for_the_one_where_it_is_through_first() -> None:
    """The slow one has a place in its queue, but whoever takes it would be through later."""
    no_slot = an_instance("d0", 4.0, sequences=4, max_batch=2, has_room=False)
    no_memory = an_instance("d0", 4.0, kv=960, sequences=4, max_batch=2, tokens=1000)
    slow = an_instance("d1", 6.0, factor=3.0, sequences=3, max_batch=2)
    for full in (no_slot, no_memory):
        assert POLICY.place(REQUEST, a_mesh(full, slow)) == WAIT
        assert decode_of(full, an_instance("d1", 0.3, factor=3.0, sequences=3, max_batch=2)) == "d1"


def test_who_takes_no_more_requests_is_not_asked() -> None:
    assert POLICY.place(REQUEST, a_mesh(an_instance("d0", has_room=False))) == WAIT
    assert decode_of(an_instance("d0", 60.0, has_room=False), an_instance("d1", 50.0)) == "d1"


# ---------------------------------------------------------------- ablations


def test_without_the_work_the_least_used_memory_wins() -> None:
    views = an_instance("d0", kv=500, tokens=1000), an_instance("d1", 90.0, kv=400, tokens=10_000, factor=9.0)
    assert decode_of(*views) == "d0"
    assert decode_of(*views, settings=CapacitySettings(counts_work=False)) == "d1"


def test_without_the_memory_only_slots_are_waited_for() -> None:
    views = an_instance("d0", kv=990, tokens=1000), an_instance("d1", 5.0, kv=990, tokens=1000)
    assert POLICY.place(REQUEST, a_mesh(*views)) == WAIT
    assert decode_of(*views, settings=CapacitySettings(counts_kv=False)) == "d0"


# ---------------------------------------------------------------- who can be served at all


def test_it_needs_a_d_that_knows_its_costs() -> None:
    unknown = a_decode("d0", member=a_member("d0", costs=None))
    assert "no decode instance is in the mesh" in str(POLICY.not_ready(a_mesh(a_prefill())))
    assert "self_profile" in str(POLICY.not_ready(a_mesh(unknown)))
    refusal = POLICY.refusal(REQUEST, a_mesh(unknown))
    assert refusal is not None
    assert refusal.kind is FailureKind.NO_INSTANCE
    mesh = a_mesh(unknown, an_instance("d1", 99.0))
    assert POLICY.not_ready(mesh) is None
    assert POLICY.refusal(REQUEST, mesh) is None
    assert decode_of(*mesh.decodes) == "d1"


def test_what_none_of_these_holds_is_refused_not_queued() -> None:
    unknown = a_decode("d0", member=a_member("d0", costs=None))
    refusal = POLICY.refusal(a_request(1000), a_mesh(unknown, an_instance("d1", tokens=500)))
    assert refusal is not None
    assert refusal.kind is FailureKind.INVALID_REQUEST
    assert "holds 500" in refusal.message


def test_an_empty_mesh_is_waited_out() -> None:
    assert POLICY.place(REQUEST, MeshView()) == WAIT


@pytest.mark.parametrize("split", [0, 40, "full"])
def test_a_split_of_its_own_is_placed_as_fixed_does(split: int | str) -> None:
    mesh = a_mesh(a_prefill(), an_instance("d0", 9.0), an_instance("d1", factor=5.0))
    request = a_request(100, 50, split=split)
    assert POLICY.place(request, mesh) == FixedPolicy(0).place(request, mesh)
    assert POLICY.needs_prefill(request) is (split != 0)
    assert POLICY.refusal(request, a_mesh(*mesh.decodes)) == FixedPolicy(0).refusal(request, a_mesh(*mesh.decodes))
    assert not POLICY.needs_prefill(REQUEST)


# ---------------------------------------------------------------- slots about to be free


def about_to_end(name: str, ending: int) -> InstanceView:
    """Its two slots are taken and one waits there; `ending` sequences are to make their last token next."""
    view = an_instance(name, 1.0, sequences=3, max_batch=2)
    return msgspec.structs.replace(view, work=msgspec.structs.replace(view.work, ending=ending))


@pytest.mark.parametrize(("ending", "chosen"), [(1, "d0"), (0, None)])
def test_a_slot_about_to_be_free_is_filled_ahead(ending: int, chosen: str | None) -> None:
    full = an_instance("d1", 0.5, sequences=3, max_batch=2, has_room=False)
    mesh = msgspec.structs.replace(a_mesh(about_to_end("d0", ending), full), waiting=9)
    assert place_of(mesh) == chosen


def place_of(mesh: MeshView) -> str | None:
    placement = POLICY.place(REQUEST, mesh)
    return placement.decode if isinstance(placement, Placement) else None


# ---------------------------------------------------------------- the last requests of a burst


@pytest.mark.parametrize(("waiting", "chosen"), [(100, "slow"), (1, None)])
def test_a_slow_instance_gets_none_of_the_last(waiting: int, chosen: str | None) -> None:
    """The fast one is full, but would be through with the last of them long before the slow one."""
    fast = an_instance("fast", 0.1, sequences=3, max_batch=2, has_room=False)
    mesh = a_mesh(fast, an_instance("slow", factor=50.0, max_batch=2))
    assert place_of(msgspec.structs.replace(mesh, waiting=waiting)) == chosen


def test_an_idle_slow_instance_is_used_where_the_fast_one_would_be_through_later() -> None:
    fast = an_instance("fast", 30.0, sequences=3, max_batch=2, has_room=False)
    assert place_of(a_mesh(fast, an_instance("slow", factor=2.0, max_batch=2))) == "slow"


def test_the_shared_finish_is_that_of_equal_ends() -> None:
    demand = Demand.of(REQUEST, MeshView())
    views = an_instance("a", 2.0), an_instance("b", 0.0, factor=3.0), an_instance("c", 500.0)
    targets = [Target.of(view, demand, None) for view in views]
    finish = shared_finish_s(targets, 7)
    assert sum(max(0.0, finish - one.queued_s) / one.added_s for one in targets) == pytest.approx(7)
    assert targets[2].queued_s > finish, "it takes no part"
