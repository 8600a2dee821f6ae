"""Every other way for a request to end than its finish, event by event."""

import msgspec
import pytest

from common.errors import Failure, FailureKind
from common.ids import Generation, InstanceId, RequestId
from common.messages.control import Abort, Load, Register
from services.scheduling.ledgers.output_lengths import RunningQuantile
from services.scheduling.lifecycle.events import (
    ClientGone,
    Deliver,
    Fail,
    Finish,
    Holdings,
    IllegalEvent,
    Send,
    ShutdownRequested,
)
from services.scheduling.lifecycle.lifecycle import ORDINARY_ANSWER, Lifecycle, Limits
from services.scheduling.membership.members import LoadReported, LossReason, MemberJoined, MemberLost
from services.scheduling.placement import Placement
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import MeshView, Wait
from services.scheduling.request import RequestSpec
from services.scheduling.tick import Tick
from tests.unit.scheduling.lifecycle_case import (
    D0,
    D1,
    GENERATION,
    P0,
    P1,
    STOP,
    a_lifecycle,
    a_member,
    a_spec,
    aborts,
    arrive,
    emit,
    fail_job,
    kinds,
    land,
    lose,
    places,
    release,
    tokens,
)


def test_a_client_that_leaves_frees_both_sides() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    effects = lifecycle.handle(ClientGone(RequestId("r")))
    assert aborts(effects) == {("p0", "r"), ("d0", "r")}
    assert len(effects) == 2, "an abandoned request ends in silence"
    assert lifecycle.holdings() == Holdings(requests=0, queued=0, slots=1)
    assert lifecycle.handle(ClientGone(RequestId("r"))) == []
    release(lifecycle, "r")
    assert lifecycle.is_idle()


def test_a_client_that_leaves_after_the_release_concerns_decode_alone() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    release(lifecycle, "r")
    assert aborts(lifecycle.handle(ClientGone(RequestId("r")))) == {("d0", "r")}


def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("a"))
    arrive(lifecycle, a_spec("b"))
    assert lifecycle.handle(ClientGone(RequestId("b"))) == []
    assert release(lifecycle, "a") == []
    assert lifecycle.holdings() == Holdings(requests=1, queued=0, slots=0)


def test_the_loss_of_prefill_fails_what_has_not_landed() -> None:
    lifecycle = a_lifecycle(P0, P1, D0, prefill_slots=2)
    for name in ("a", "b", "c"):
        arrive(lifecycle, a_spec(name))
    land(lifecycle, "a")
    effects = lose(lifecycle, P0)
    assert kinds(effects) == {"c": FailureKind.PREFILL_LOST}, "a has landed, b runs at p1"
    assert aborts(effects) == {("d0", "c")}
    assert isinstance(effects[0], Fail)
    assert effects[0].failure.instance == P0
    assert "silent" in effects[0].failure.message
    assert emit(lifecycle, tokens("a", 0, 7)) == [Deliver(tokens("a", 0, 7))]
    assert lifecycle.holdings() == Holdings(requests=2, queued=0, slots=1)


def test_prefill_may_be_lost_once_it_has_released() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    release(lifecycle, "r")
    assert lose(lifecycle, P0, LossReason.LEFT) == []
    assert emit(lifecycle, tokens("r", 0, 7)) == [Deliver(tokens("r", 0, 7))]


def test_a_token_proves_that_the_kv_has_landed() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    emit(lifecycle, tokens("r", 0, 7))
    assert lose(lifecycle, P0) == []


def test_the_loss_of_decode_fails_all_it_served() -> None:
    lifecycle = a_lifecycle(P0, D0, prefill_slots=2)
    arrive(lifecycle, a_spec("a"))
    release(lifecycle, "a")
    arrive(lifecycle, a_spec("b"))
    arrive(lifecycle, a_spec("c", split=0))
    effects = lose(lifecycle, D0)
    assert kinds(effects) == dict.fromkeys(("a", "b", "c"), FailureKind.DECODE_LOST)
    assert aborts(effects) == {("p0", "b")}
    release(lifecycle, "b")
    assert lifecycle.is_idle()


def test_those_in_line_fail_when_their_role_is_gone() -> None:
    lifecycle = a_lifecycle()
    for name in ("a", "b"):
        arrive(lifecycle, a_spec(name))
    effects = lose(lifecycle, P0)
    assert kinds(effects) == {"a": FailureKind.PREFILL_LOST, "b": FailureKind.NO_INSTANCE}
    assert lifecycle.is_idle()


def test_those_in_line_go_to_another_instance_of_the_role() -> None:
    lifecycle = a_lifecycle(P0, P1, D0)
    for name in ("a", "b", "c"):
        arrive(lifecycle, a_spec(name))
    release(lifecycle, "b", P1)
    assert lifecycle.holdings() == Holdings(requests=3, queued=0, slots=2)
    arrive(lifecycle, a_spec("d"))
    effects = lose(lifecycle, P0)
    assert kinds(effects) == {"a": FailureKind.PREFILL_LOST}
    assert places(effects) == [], "p1 is taken by c"
    assert places(release(lifecycle, "c", P1)) == [("d", P1, D0)]


def test_a_loss_of_another_life_is_ignored() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    assert lifecycle.handle(MemberLost(D0, Generation(99), LossReason.REPLACED)) == []
    assert lifecycle.holdings().requests == 1


def test_messages_of_a_former_life_change_nothing() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("a"))
    lose(lifecycle, P0)
    lifecycle.handle(MemberJoined(a_member(P0, Generation(99))))
    arrive(lifecycle, a_spec("b"))
    assert release(lifecycle, "b") == [], "the generation is the former one"
    assert fail_job(lifecycle, P0, "b") == []
    assert lifecycle.holdings() == Holdings(requests=1, queued=0, slots=1)
    # Lost and replaced while the request is held at the new life only: the abort goes there.
    assert aborts(lifecycle.handle(ClientGone(RequestId("b")))) == {("p0", "b"), ("d0", "b")}


@pytest.mark.parametrize(("failed", "other"), [(P0, "d0"), (D0, "p0")])
def test_a_failed_job_ends_the_request_at_the_other_side(failed: InstanceId, other: str) -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    effects = fail_job(lifecycle, failed, "r")
    failure = Failure(FailureKind.HANDOFF_FAILED, "the wire is cut", failed)
    assert effects == [
        Fail(RequestId("r"), failure),
        Send(InstanceId(other), Abort(RequestId("r"))),
    ]
    assert fail_job(lifecycle, InstanceId(other), "r") == []
    release(lifecycle, "r")
    assert lifecycle.is_idle()


def test_a_failure_of_prefill_after_the_landing_harms_nobody() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    land(lifecycle, "r")
    assert fail_job(lifecycle, P0, "r") == []
    assert emit(lifecycle, tokens("r", 0, 7)) == [Deliver(tokens("r", 0, 7))]


def test_deadlines_end_running_and_waiting_requests() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("a", deadline_at=5.0))
    arrive(lifecycle, a_spec("b", deadline_at=5.0))
    arrive(lifecycle, a_spec("c", deadline_at=5.1))
    assert lifecycle.handle(Tick(4.9)) == []
    effects = lifecycle.handle(Tick(5.0))
    assert kinds(effects) == dict.fromkeys(("a", "b"), FailureKind.DEADLINE_EXCEEDED)
    assert aborts(effects) == {("p0", "a"), ("d0", "a")}
    messages = {str(effect.request): effect.failure.message for effect in effects if isinstance(effect, Fail)}
    assert "ran at instance 'p0' and instance 'd0'" in messages["a"]
    assert "waited for a free slot at a prefill instance" in messages["b"]
    assert lifecycle.holdings() == Holdings(requests=0, queued=1, slots=1)


def test_a_request_is_not_started_after_its_deadline() -> None:
    lifecycle = a_lifecycle(P0, D0, D1)
    arrive(lifecycle, a_spec("a"))
    arrive(lifecycle, a_spec("b", deadline_at=5.0))
    effects = arrive(lifecycle, a_spec("c", split=0), now=6.0)
    assert kinds(effects) == {"b": FailureKind.DEADLINE_EXCEEDED}
    assert places(effects) == [("c", None, D1)]
    assert places(release(lifecycle, "a")) == []


def test_the_time_sent_to_workers_is_what_remains() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("a"))
    arrive(lifecycle, a_spec("b", deadline_at=50.0), now=10.0)
    lifecycle.handle(Tick(20.0))
    sent = [effect.message for effect in release(lifecycle, "a") if isinstance(effect, Send)]
    assert [message.deadline_s for message in sent if not isinstance(message, Abort)] == [30.0, 30.0]


@pytest.mark.parametrize(
    ("ended", "state"),
    [
        ("running", "'r', which is running"),
        ("queued", "'r', which is queued"),
        ("slot", "ended but for its slot"),
    ],
)
def test_an_id_is_used_once(ended: str, state: str) -> None:
    lifecycle = a_lifecycle()
    if ended == "queued":
        arrive(lifecycle, a_spec("a"))
    arrive(lifecycle, a_spec("r"))
    if ended == "slot":
        lifecycle.handle(ClientGone(RequestId("r")))
    before = lifecycle.holdings()
    with pytest.raises(IllegalEvent, match=f"Arrived of request .*{state}"):
        arrive(lifecycle, a_spec("r"))
    assert lifecycle.holdings() == before


def test_two_lives_of_one_instance_cannot_be_members() -> None:
    with pytest.raises(IllegalEvent, match="'p0', generation 99, while generation 10 is a member"):
        a_lifecycle().handle(MemberJoined(a_member(P0, Generation(99))))


def test_a_shutdown_lets_accepted_requests_end() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("a"))
    arrive(lifecycle, a_spec("b"))
    assert lifecycle.not_ready() is None
    assert lifecycle.handle(ShutdownRequested()) == []
    assert "shutting down" in str(lifecycle.not_ready())
    assert kinds(arrive(lifecycle, a_spec("c"))) == {"c": FailureKind.SHUTTING_DOWN}
    assert places(release(lifecycle, "a")) == [("b", P0, D0)]
    release(lifecycle, "b")
    assert not lifecycle.is_idle()
    emit(lifecycle, tokens("a", 0, 7, finish=STOP), tokens("b", 0, 7, finish=STOP))
    assert lifecycle.is_idle()


def test_the_context_length_is_that_of_the_largest_decode_instance() -> None:
    lifecycle = a_lifecycle(P0)
    assert lifecycle.context_length() is None
    lifecycle.handle(MemberJoined(a_member(D0)))
    assert lifecycle.context_length() == 100


def roomy(instance: InstanceId, tokens: int) -> Register:
    return msgspec.structs.replace(a_member(instance), context_length=100_000, kv_capacity_tokens=tokens)


def test_a_request_without_max_tokens_may_run_wherever_an_ordinary_answer_has_room() -> None:
    lifecycle = a_lifecycle(P0)
    assert lifecycle.open_context(10) is None
    lifecycle.handle(MemberJoined(roomy(D0, 80_000)))
    lifecycle.handle(MemberJoined(roomy(D1, 20_000)))
    assert lifecycle.context_length() == 80_000
    assert lifecycle.open_context(10) == 20_000
    assert lifecycle.open_context(20_000 - ORDINARY_ANSWER) == 20_000
    assert lifecycle.open_context(20_001 - ORDINARY_ANSWER) == 80_000
    assert lifecycle.open_context(79_998) == 80_000, "half of what is left is room enough"


def test_what_only_a_draining_instance_can_hold_may_be_sent_again() -> None:
    lifecycle = a_lifecycle(P0)
    lifecycle.handle(MemberJoined(roomy(D0, 80_000)))
    lifecycle.handle(MemberJoined(roomy(D1, 100)))
    lifecycle.handle(LoadReported(D0, GENERATION[D0], Load(draining=True)))
    assert kinds(arrive(lifecycle, a_spec("big", max_tokens=1000))) == {"big": FailureKind.NO_INSTANCE}
    assert lifecycle.context_length() == 80_000
    lose(lifecycle, D0)
    assert kinds(arrive(lifecycle, a_spec("bigger", max_tokens=1000))) == {"bigger": FailureKind.INVALID_REQUEST}


def test_a_waiting_request_whose_only_instance_is_lost_may_be_sent_again() -> None:
    lifecycle = a_lifecycle(P0)
    lifecycle.handle(MemberJoined(roomy(D0, 80_000)))
    lifecycle.handle(MemberJoined(roomy(D1, 100)))
    arrive(lifecycle, a_spec("first", max_tokens=1000))
    assert kinds(arrive(lifecycle, a_spec("waits", max_tokens=1000))) == {}
    (first, waits) = (effect for effect in lose(lifecycle, D0) if isinstance(effect, Fail))
    assert (first.failure.kind, waits.failure.kind) == (FailureKind.DECODE_LOST, FailureKind.NO_INSTANCE)
    assert "an instance that could serve the request is lost or drains" in waits.failure.message


def test_a_policy_that_fails_costs_the_request_that_it_was_asked_about() -> None:
    class Faulty(FixedPolicy):
        def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
            if request.request == "faulty":
                raise ZeroDivisionError("a weight of 0")
            return super().place(request, mesh)

    lifecycle = Lifecycle(Limits(prefill_slots=1), Faulty("full"))
    for instance in (P0, D0):
        lifecycle.handle(MemberJoined(a_member(instance)))
    arrive(lifecycle, a_spec("a"))
    assert kinds(arrive(lifecycle, a_spec("faulty"))) == {"faulty": FailureKind.ENGINE_FAILED}
    release(lifecycle, "a")
    effects = emit(lifecycle, tokens("a", 0, 7, finish=STOP))
    assert [type(effect) for effect in effects] == [Deliver, Finish]
    assert lifecycle.is_idle()


def test_an_answer_that_a_stop_string_ends_teaches_how_long_answers_are() -> None:
    lengths = RunningQuantile()
    lifecycle = Lifecycle(Limits(), FixedPolicy("full"), lengths)
    for instance in (P0, D0):
        lifecycle.handle(MemberJoined(a_member(instance)))
    for name, is_answered in (("gone", False), ("answered", True)):
        arrive(lifecycle, a_spec(name))
        release(lifecycle, name)
        emit(lifecycle, tokens(name, 0, 7, 7, 7))
        lifecycle.handle(ClientGone(RequestId(name), is_answered))
        assert (lengths.predict(a_spec("next")) == 3.0) is is_answered
