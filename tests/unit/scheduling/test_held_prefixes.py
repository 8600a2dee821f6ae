"""Whose KV holds a prompt's beginning, and what the life cycle and the policies make of it."""

from collections.abc import Mapping

import msgspec
import pytest

from common.ids import Generation, InstanceId, RequestId
from common.kv.prefix import PrefixKeys, PrefixNews, root_key
from common.messages.control import Load, PrefixReused
from services.scheduling.ledgers.prefixes import HeldPrefixes
from services.scheduling.lifecycle.events import Reused
from services.scheduling.membership.members import LoadReported
from services.scheduling.placement import Placement
from services.scheduling.policies.balancer import Balance, SplitTask, choose_split
from services.scheduling.policies.capacity import CapacityPolicy
from services.scheduling.policies.cronus import CronusPolicy
from services.scheduling.policies.disaggregated import DisaggregatedPolicy
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import InstanceView, MeshView, PlacementPolicy
from services.scheduling.profiles.stage_times import DecodeLoad, PrefillStage
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import (
    BLOCK,
    COSTS,
    LAYOUT,
    TOKEN_BYTES,
    a_decode,
    a_member,
    a_mesh,
    a_pair,
    a_prefill,
    a_request,
)
from tests.unit.scheduling.lifecycle_case import D0, GENERATION, P0, a_lifecycle, a_spec, aborts, arrive, emit, tokens

D1 = InstanceId("d1")


def keys_of(request: RequestSpec, blocks: int, size: int = BLOCK) -> tuple[bytes, ...]:
    keys = PrefixKeys(root_key(LAYOUT.model, size), size)
    return tuple(keys.first(blocks, lambda start, stop: request.prompt[start:stop]))


# ---------------------------------------------------------------- what is held


def test_as_much_is_held_as_was_told_without_a_gap() -> None:
    request, held = a_request(100), HeldPrefixes()
    members = [a_member("d0"), a_member("d1")]
    assert held.of(request, members) == {}
    keys = keys_of(request, 6)
    held.note(InstanceId("d0"), PrefixNews((*keys[:2], keys[3])))
    assert held.of(request, members) == {"d0": 2 * BLOCK}
    held.note(InstanceId("d0"), PrefixNews((keys[2],), ()))
    held.note(D1, PrefixNews(keys))
    assert held.of(request, members) == {"d0": 4 * BLOCK, "d1": 6 * BLOCK}
    held.note(D1, PrefixNews((), (keys[0],)))
    held.forget(InstanceId("d0"))
    assert held.of(request, members) == {}


def test_each_member_is_asked_in_blocks_of_its_size() -> None:
    request, held = a_request(100), HeldPrefixes()
    small = msgspec.structs.replace(a_member("d1"), layout=msgspec.structs.replace(LAYOUT, block_size=4))
    held.note(InstanceId("d0"), PrefixNews(keys_of(request, 2)))
    held.note(D1, PrefixNews(keys_of(request, 5, size=4)))
    assert held.of(request, [a_member("d0"), small]) == {"d0": 32, "d1": 20}


# ---------------------------------------------------------------- the life cycle


def reused(name: str, instance: InstanceId, count: int) -> PrefixReused:
    return PrefixReused(instance, GENERATION[instance], RequestId(name), count)


def test_what_p_reuses_is_told_and_counts_as_work_no_more() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))  # five tokens, split 4
    assert lifecycle.handle(reused("r", P0, 3)) == [Reused(RequestId("r"), 3)]
    assert lifecycle._view().prefills[0].pending_prompts == (1,)
    lifecycle.check()


def test_what_d_reuses_of_p_s_part_saves_the_wire_alone() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    assert lifecycle.handle(reused("r", D0, 3)) == []
    assert lifecycle._view().decodes[0].work.prompt_tokens == 1


@pytest.mark.parametrize("count", [4, 5])
def test_a_d_that_has_p_s_part_lets_p_go(count: int) -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    effects = lifecycle.handle(reused("r", D0, count))
    assert effects[0] == Reused(RequestId("r"), count)
    assert aborts(effects) == {("p0", "r")}
    assert lifecycle.handle(reused("r", D0, count)) == [], "once"
    emit(lifecycle, tokens("r", 0, 7))
    lifecycle.check()


def test_an_aggregated_request_reuses_what_d_has() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r", split=0))
    assert lifecycle._view().decodes[0].work.prompt_tokens == 5
    assert lifecycle.handle(reused("r", D0, 4)) == [Reused(RequestId("r"), 4)]
    assert lifecycle._view().decodes[0].work.prompt_tokens == 1


def test_of_a_request_or_a_life_that_is_over_nothing_is_told() -> None:
    lifecycle = a_lifecycle()
    assert lifecycle.handle(reused("r", D0, 3)) == []
    arrive(lifecycle, a_spec("r"))
    assert lifecycle.handle(PrefixReused(D0, Generation(1), RequestId("r"), 4)) == []


def test_the_ledger_counts_what_the_member_told_before() -> None:
    lifecycle = a_lifecycle()
    spec = msgspec.structs.replace(a_spec("r"), prompt=tuple(range(40)))
    lifecycle.handle(LoadReported(P0, GENERATION[P0], Load(), PrefixNews(keys_of(spec, 2, size=16))))
    arrive(lifecycle, spec)
    assert lifecycle._view().prefills[0].pending_prompts == (39 - 32,)
    lifecycle.check()


# ---------------------------------------------------------------- policies


def place(policy: PlacementPolicy, request: RequestSpec, mesh: MeshView, held: Mapping[str, int]) -> Placement:
    known = {InstanceId(name): count for name, count in held.items()}
    placement = policy.place(request, msgspec.structs.replace(mesh, held=known))
    assert isinstance(placement, Placement), placement
    assert (placement.prefill is None) == (placement.split == 0)
    return placement


POLICIES = pytest.mark.parametrize(
    "policy", [FixedPolicy("full"), DisaggregatedPolicy(), CronusPolicy(), CapacityPolicy()]
)


@POLICIES
def test_a_d_that_holds_the_prompt_is_preferred_and_needs_no_p(policy: PlacementPolicy) -> None:
    mesh = a_mesh(a_prefill("p0"), a_decode("d0"), a_decode("d1"))
    placement = place(policy, a_request(1000), mesh, {"d1": 999})
    assert (placement.prefill, placement.decode, placement.kv_bytes) == (None, "d1", 0)


@pytest.mark.parametrize("policy", [FixedPolicy("full"), DisaggregatedPolicy()])
def test_the_p_that_holds_the_beginning_is_preferred(policy: PlacementPolicy) -> None:
    mesh = a_mesh(a_prefill("p0"), a_prefill("p1"), a_decode("d0"))
    assert place(policy, a_request(1000), mesh, {"p1": 640}).prefill == "p1"
    busy = a_mesh(a_prefill("p0"), a_prefill("p1", 5000), a_decode("d0"))
    assert place(policy, a_request(1000), busy, {"p1": 640}).prefill == "p0", "not at any price"


def test_only_what_d_lacks_is_planned_on_the_wire() -> None:
    mesh = a_mesh(a_prefill("p0"), a_decode("d0"))
    placement = place(FixedPolicy("full"), a_request(1000), mesh, {"d0": 640})
    assert (placement.split, placement.kv_bytes) == (999, (999 - 640) * TOKEN_BYTES)


def test_a_split_that_the_request_says_is_kept() -> None:
    mesh = a_mesh(a_prefill("p0"), a_decode("d0"))
    assert place(FixedPolicy("full"), a_request(1000, split=500), mesh, {"d0": 640}).split == 500


@pytest.mark.parametrize("policy", [CronusPolicy(), CapacityPolicy()])
def test_a_loaded_d_is_not_preferred_at_any_price(policy: PlacementPolicy) -> None:
    views: list[InstanceView] = [a_decode("d0"), a_decode("d1", DecodeLoad(10, 10_000, 50_000, 20))]
    if isinstance(policy, CapacityPolicy):
        return  # it counts work, which a view of a load alone does not have
    assert place(policy, a_request(1000), a_mesh(*views), {"d1": 320}).decode == "d0"


# ---------------------------------------------------------------- the balancer

EVEN_P = PrefillStage(COSTS.prefill)


@pytest.mark.parametrize("balance", list(Balance))
def test_p_computes_what_it_lacks_itself_whatever_d_holds(balance: Balance) -> None:
    split = choose_split(SplitTask(1000, held_tokens=200), a_pair(prefill=EVEN_P), balance)
    if split.tokens > 200:
        assert split.prefill_s == pytest.approx(EVEN_P.seconds(split.tokens))
    more = choose_split(SplitTask(1000, held_tokens=200, prefill_held_tokens=400), a_pair(prefill=EVEN_P), balance)
    assert more.tokens >= split.tokens
    assert more.prefill_s == pytest.approx(EVEN_P.seconds(more.tokens - 400))
    assert more.first_token_s <= split.first_token_s + 1e-12
