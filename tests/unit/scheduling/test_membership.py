"""Leases, generations and layouts, event by event."""

from typing import Any

import msgspec
import pytest

from common.ids import Generation, InstanceId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import (
    Heartbeat,
    HeartbeatAck,
    Leaving,
    Load,
    Register,
    Rejected,
    Role,
    Welcome,
)
from services.scheduling.membership.members import LoadReported, LossReason, MemberJoined, MemberLost
from services.scheduling.membership.membership import (
    KeyWithdrawn,
    Membership,
    MembershipEffect,
    MembershipMessage,
    MessageReceived,
    PeerUnreachable,
    Reply,
    incompatibility,
)
from services.scheduling.tick import Tick

EPOCH = Generation(7)
P0 = InstanceId("p0")
LAYOUT = KVLayout(
    model="tiny",
    dtype=KVDType.FLOAT32,
    block_size=16,
    order=KVOrder.NHD,
    layers=Interval(0, 2),
    heads=Interval(0, 3),
    head_dim=8,
)
WELCOME = Welcome(epoch=EPOCH, heartbeat_s=0.5, lease_s=3.0)
ACK = HeartbeatAck(epoch=EPOCH)


def a_membership() -> Membership:
    return Membership(EPOCH, heartbeat_s=0.5, lease_s=3.0, tick_s=0.5)


def register(generation: int = 1, instance: InstanceId = P0, layout: KVLayout = LAYOUT) -> Register:
    return Register(
        instance=instance,
        role=Role.PREFILL,
        generation=Generation(generation),
        endpoints=("inproc://p0",),
        layout=layout,
        context_length=100,
        kv_capacity_tokens=100,
        max_batch=4,
    )


def heartbeat(generation: int = 1, running: int = 0) -> Heartbeat:
    return Heartbeat(P0, Generation(generation), Load(running=running))


def say(
    membership: Membership, message: MembershipMessage, *, now: float = 0.0, peer: bytes = b"a"
) -> list[MembershipEffect]:
    return membership.handle(MessageReceived(now, peer, message))


def rejection(effects: list[MembershipEffect], peer: bytes = b"a") -> Rejected:
    match effects:
        case [Reply(peer=to, message=Rejected() as rejected)]:
            assert to == peer
            return rejected
    raise AssertionError(f"not one rejection: {effects}")


def lost(generation: int, reason: LossReason) -> MemberLost:
    return MemberLost(P0, Generation(generation), reason)


def test_a_worker_joins_reports_and_leaves() -> None:
    membership = a_membership()
    assert say(membership, register()) == [Reply(b"a", WELCOME), MemberJoined(register())]
    assert membership.members() == (register(),)
    assert membership.peer(P0) == b"a"
    assert say(membership, heartbeat(running=2)) == [
        Reply(b"a", ACK),
        LoadReported(P0, Generation(1), Load(running=2)),
    ]
    assert say(membership, Leaving(P0, Generation(1))) == [lost(1, LossReason.LEFT)]
    assert membership.members() == ()
    assert membership.peer(P0) is None


def test_a_silent_member_is_lost_at_the_end_of_its_lease() -> None:
    membership = a_membership()
    say(membership, register(), now=10.0)
    say(membership, heartbeat(), now=11.0)
    assert membership.handle(Tick(13.9)) == []
    assert membership.handle(Tick(14.0)) == [lost(1, LossReason.SILENT)]
    assert membership.handle(Tick(99.0)) == []


def test_time_in_which_the_gateway_stood_still_is_no_silence_of_its_members() -> None:
    membership = a_membership()
    say(membership, register(), now=10.0)
    assert membership.handle(Tick(11.0)) == []
    assert membership.handle(Tick(500.0)) == [], "the heartbeats since are still to be read"
    for tenth in range(1, 15):
        assert membership.handle(Tick(500.0 + tenth / 10)) == []
    assert membership.handle(Tick(501.5)) == [lost(1, LossReason.SILENT)], "of 3 s, 1 s before and one tick meanwhile"


def test_a_short_lease_ends_although_ticks_are_always_a_little_late() -> None:
    membership = Membership(EPOCH, heartbeat_s=0.1, lease_s=0.3, tick_s=0.1)
    say(membership, register(), now=10.0)
    effects = [membership.handle(Tick(10.0 + 0.11 * count)) for count in range(1, 8)]
    assert [lost(1, LossReason.SILENT)] in effects


def test_a_heartbeat_read_before_the_late_tick_renews_no_further_than_now() -> None:
    membership = a_membership()
    say(membership, register(), now=10.0)
    membership.handle(Tick(10.0))
    say(membership, heartbeat(), now=19.0)
    assert membership.handle(Tick(20.0)) == []
    for tenth in range(1, 30):
        assert membership.handle(Tick(20.0 + tenth / 10)) == []
    assert membership.handle(Tick(23.0)) == [lost(1, LossReason.SILENT)]


def test_a_heartbeat_after_the_lease_is_told_to_register() -> None:
    membership = a_membership()
    say(membership, register())
    membership.handle(Tick(3.0))
    rejected = rejection(say(membership, heartbeat(), now=3.1))
    assert not rejected.fatal
    assert "'p0' is not a member" in rejected.reason
    assert say(membership, register(2), now=3.2) == [Reply(b"a", WELCOME), MemberJoined(register(2))]


def test_a_new_generation_ends_the_old_life_first() -> None:
    membership = a_membership()
    say(membership, register(1))
    assert say(membership, register(2)) == [
        lost(1, LossReason.REPLACED),
        Reply(b"a", WELCOME),
        MemberJoined(register(2)),
    ]
    rejected = rejection(say(membership, heartbeat(1)))
    assert not rejected.fatal
    assert "generation 1" in rejected.reason


def test_of_two_processes_with_one_id_the_newer_stays_and_the_older_ends() -> None:
    membership = a_membership()
    say(membership, register(1), peer=b"old")
    say(membership, register(2), peer=b"new")
    assert membership.peer(P0) == b"new"
    rejected = rejection(say(membership, heartbeat(1), peer=b"old"), b"old")
    assert rejected.fatal
    assert "another process has joined as instance 'p0'" in rejected.reason
    assert membership.members() == (register(2),)
    assert say(membership, heartbeat(2), peer=b"new")[0] == Reply(b"new", ACK)


def test_a_rejected_heartbeat_renews_nothing() -> None:
    membership = a_membership()
    say(membership, register(2), now=0.0)
    say(membership, heartbeat(1), now=2.9)
    assert membership.handle(Tick(3.0)) == [lost(2, LossReason.SILENT)]


def test_a_repeated_registration_is_welcomed_without_a_second_joining() -> None:
    membership = a_membership()
    say(membership, register(), now=0.0)
    assert say(membership, register(), now=2.0, peer=b"b") == [Reply(b"b", WELCOME)]
    assert membership.peer(P0) == b"b"
    assert membership.handle(Tick(4.9)) == []


def test_one_generation_cannot_register_two_sets_of_facts() -> None:
    membership = a_membership()
    say(membership, register())
    other = msgspec.structs.replace(register(), max_batch=5)
    assert "draw a new generation" in rejection(say(membership, other)).reason
    assert membership.members() == (register(),)


def test_a_member_may_go_on_over_a_new_connection() -> None:
    membership = a_membership()
    say(membership, register())
    assert say(membership, heartbeat(), peer=b"b")[0] == Reply(b"b", ACK)
    assert membership.peer(P0) == b"b"


def test_leaving_of_an_old_life_is_ignored() -> None:
    membership = a_membership()
    say(membership, register(2))
    assert say(membership, Leaving(P0, Generation(1))) == []
    assert membership.members() == (register(2),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "other"),
        ("layers", Interval(0, 3)),
        ("heads", Interval(1, 3)),
        ("head_dim", 16),
    ],
)
def test_another_model_is_refused_for_good(field: str, value: Any) -> None:
    membership = a_membership()
    say(membership, register())
    other = register(9, InstanceId("d0"), msgspec.structs.replace(LAYOUT, **{field: value}))
    rejected = rejection(say(membership, other))
    assert rejected.fatal
    assert f"{field} is {value!r}, the mesh has {getattr(LAYOUT, field)!r}" in rejected.reason
    assert membership.members() == (register(),)


def test_the_first_layout_stays_when_everyone_has_left() -> None:
    membership = a_membership()
    say(membership, register())
    say(membership, Leaving(P0, Generation(1)))
    other = register(2, layout=msgspec.structs.replace(LAYOUT, model="other"))
    assert rejection(say(membership, other)).fatal


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "cuda"),
        ("dtype", KVDType.FLOAT16),
        ("block_size", 32),
        ("order", KVOrder.HND),
        ("packed", True),
    ],
)
def test_the_kv_of_one_model_may_lie_otherwise(field: str, value: Any) -> None:
    assert incompatibility(LAYOUT, msgspec.structs.replace(LAYOUT, **{field: value})) is None


def test_all_differences_are_named() -> None:
    difference = incompatibility(LAYOUT, msgspec.structs.replace(LAYOUT, model="m", head_dim=4))
    assert difference == f"model is 'm', the mesh has {LAYOUT.model!r}; head_dim is 4, the mesh has {LAYOUT.head_dim}"


def test_a_member_that_cannot_be_reached_is_lost_at_once() -> None:
    membership = a_membership()
    say(membership, register(), peer=b"a")
    assert membership.handle(PeerUnreachable(b"b")) == []
    assert membership.handle(PeerUnreachable(b"a")) == [MemberLost(P0, Generation(1), LossReason.UNREACHABLE)]
    assert membership.members() == ()
    assert membership.handle(PeerUnreachable(b"a")) == []


def test_a_member_whose_key_was_withdrawn_is_lost_and_told() -> None:
    membership = a_membership()
    say(membership, register(), peer=b"a")
    assert membership.handle(KeyWithdrawn(InstanceId("d9"))) == []
    reply, loss = membership.handle(KeyWithdrawn(P0))
    assert not rejection([reply], b"a").fatal, "where its key was replaced, it may come back"
    assert loss == lost(1, LossReason.REVOKED)
    assert membership.members() == ()
    assert membership.handle(KeyWithdrawn(P0)) == []
