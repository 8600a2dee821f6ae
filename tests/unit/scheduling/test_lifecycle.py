"""How requests are placed, queued and finished, event by event."""

from common.errors import FailureKind
from common.ids import Generation, RequestId
from common.messages.control import (
    Load,
    RunDecode,
    RunPrefill,
)
from common.messages.sampling import SamplingParams
from services.scheduling.lifecycle.events import (
    ClientGone,
    Deliver,
    Fail,
    Finish,
    Holdings,
    Place,
    Send,
)
from services.scheduling.lifecycle.lifecycle import Lifecycle, Limits
from services.scheduling.membership.members import LoadReported, MemberJoined
from services.scheduling.placement import Placement
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import MeshView, Wait
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.lifecycle_case import (
    D0,
    D1,
    GENERATION,
    LAYOUT,
    LENGTH,
    P0,
    P1,
    STOP,
    a_lifecycle,
    a_member,
    a_spec,
    a_ticket,
    arrive,
    emit,
    kinds,
    land,
    places,
    release,
    tokens,
)


def test_both_jobs_are_sent_at_once_with_one_ticket() -> None:
    lifecycle = a_lifecycle()
    effects = arrive(lifecycle, a_spec("r", deadline_at=30.0), now=10.0)
    assert effects == [
        Place(RequestId("r"), Placement(P0, D0, 4, 4 * LAYOUT.token_bytes)),
        Send(P0, RunPrefill(RequestId("r"), (1, 2, 3, 4), a_ticket("r"), 20.0)),
        Send(
            D0,
            RunDecode(
                request=RequestId("r"),
                prompt=(1, 2, 3, 4, 5),
                split=4,
                ticket=a_ticket("r"),
                sampling=SamplingParams(seed=3),
                max_tokens=8,
                choices=1,
                stop_tokens=(0,),
                min_tokens=1,
                deadline_s=20.0,
            ),
        ),
    ]


def test_a_request_with_split_0_goes_to_decode_alone() -> None:
    lifecycle = a_lifecycle(D0)
    place, send = arrive(lifecycle, a_spec("r", split=0))
    assert place == Place(RequestId("r"), Placement(None, D0, 0, 0))
    assert isinstance(send, Send)
    assert isinstance(send.message, RunDecode)
    assert (send.instance, send.message.split, send.message.ticket) == (D0, 0, None)
    assert lifecycle.holdings() == Holdings(requests=1, queued=0, slots=0)


def test_a_request_runs_to_its_finish_and_leaves_nothing() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r"))
    assert land(lifecycle, "r") == []
    assert release(lifecycle, "r") == []
    assert emit(lifecycle, tokens("r", 0, 7)) == [Deliver(tokens("r", 0, 7))]
    last = tokens("r", 1, 8, 9, finish=STOP)
    assert emit(lifecycle, last) == [Deliver(last), Finish(RequestId("r"))]
    assert lifecycle.is_idle()


def test_finishes_when_every_choice_has_ended() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("r", choices=2))
    first = emit(lifecycle, tokens("r", 0, 7, finish=LENGTH, choice=1), tokens("r", 0, 7))
    assert [type(effect) for effect in first] == [Deliver, Deliver]
    second = emit(lifecycle, tokens("r", 1, finish=STOP))
    assert second == [Deliver(tokens("r", 1, finish=STOP)), Finish(RequestId("r"))]


def test_the_slot_stays_taken_after_the_finish_until_released() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("a"))
    assert arrive(lifecycle, a_spec("b")) == []
    assert emit(lifecycle, tokens("a", 0, 7, finish=STOP))[-1] == Finish(RequestId("a"))
    assert lifecycle.holdings() == Holdings(requests=0, queued=1, slots=1)
    assert not lifecycle.is_idle()
    assert places(release(lifecycle, "a")) == [("b", P0, D0)]
    assert release(lifecycle, "a") == [], "a second release frees nothing"
    assert lifecycle.holdings() == Holdings(requests=1, queued=0, slots=1)


def test_a_free_slot_goes_to_the_first_in_line() -> None:
    lifecycle = a_lifecycle()
    for name in ("a", "b", "c"):
        arrive(lifecycle, a_spec(name))
    assert lifecycle.holdings() == Holdings(requests=1, queued=2, slots=1)
    assert places(release(lifecycle, "a")) == [("b", P0, D0)]
    assert places(release(lifecycle, "b")) == [("c", P0, D0)]


def test_requests_without_prefill_pass_those_that_wait_for_a_slot() -> None:
    lifecycle = a_lifecycle(queue=1)
    arrive(lifecycle, a_spec("a"))
    assert arrive(lifecycle, a_spec("b")) == []
    assert places(arrive(lifecycle, a_spec("c", split=0))) == [("c", None, D0)]


def test_the_older_line_gets_the_room_at_decode() -> None:
    lifecycle = a_lifecycle(prefill_slots=5)
    for name in ("a", "b", "c", "d"):  # twice the max_batch of 2
        assert places(arrive(lifecycle, a_spec(name, split=0))) == [(name, None, D0)]
    assert arrive(lifecycle, a_spec("e")) == []
    assert arrive(lifecycle, a_spec("f", split=0)) == []
    assert places(lifecycle.handle(ClientGone(RequestId("b")))) == [("e", P0, D0)]
    assert places(emit(lifecycle, tokens("a", 0, 7, finish=STOP))) == [("f", None, D0)]


def test_requests_spread_over_the_least_loaded() -> None:
    lifecycle = a_lifecycle(P1, P0, D1, D0)
    assert places(arrive(lifecycle, a_spec("a", max_tokens=20))) == [("a", P0, D0)]
    assert places(arrive(lifecycle, a_spec("b"))) == [("b", P1, D1)]
    assert places(arrive(lifecycle, a_spec("c", split=0, max_tokens=1))) == [("c", None, D1)]
    assert places(arrive(lifecycle, a_spec("d", split=0, max_tokens=1))) == [("d", None, D1)]
    assert places(arrive(lifecycle, a_spec("e", split=0))) == [("e", None, D0)]


def test_one_more_than_the_queue_holds_is_refused() -> None:
    lifecycle = a_lifecycle(queue=2)
    for name in ("a", "b", "c"):
        assert kinds(arrive(lifecycle, a_spec(name))) == {}
    effects = arrive(lifecycle, a_spec("d"))
    assert kinds(effects) == {"d": FailureKind.OVERLOADED}
    assert isinstance(effects[0], Fail)
    assert "2 requests wait already" in effects[0].failure.message
    assert "a free slot at a prefill instance" in effects[0].failure.message
    assert lifecycle.holdings() == Holdings(requests=1, queued=2, slots=1)


def test_an_unservable_request_is_refused_at_arrival() -> None:
    assert kinds(arrive(a_lifecycle(D0), a_spec("r"))) == {"r": FailureKind.NO_INSTANCE}
    assert kinds(arrive(a_lifecycle(), a_spec("r", max_tokens=96))) == {"r": FailureKind.INVALID_REQUEST}
    assert kinds(arrive(a_lifecycle(), a_spec("r", split=-1))) == {"r": FailureKind.INVALID_REQUEST}


def test_a_newcomer_takes_from_the_queue() -> None:
    lifecycle = a_lifecycle()
    arrive(lifecycle, a_spec("a"))
    arrive(lifecycle, a_spec("b"))
    assert places(lifecycle.handle(MemberJoined(a_member(P1)))) == [("b", P1, D0)]


def test_policies_see_what_members_report() -> None:
    class Recording(FixedPolicy):
        seen: MeshView | None = None

        def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
            self.seen = mesh
            return super().place(request, mesh)

    policy = Recording(0)
    lifecycle = Lifecycle(Limits(), policy)
    lifecycle.handle(MemberJoined(a_member(D0)))
    lifecycle.handle(LoadReported(D0, Generation(99), Load(running=1)))
    lifecycle.handle(LoadReported(D0, GENERATION[D0], Load(running=2)))
    arrive(lifecycle, a_spec("a", choices=2))
    arrive(lifecycle, a_spec("b"))
    assert policy.seen is not None
    [decode] = policy.seen.decodes
    assert decode.load == Load(running=2)
    assert (decode.outstanding_requests, decode.outstanding_tokens) == (1, 5 + 2 * 8)


def test_what_has_ended_weighs_no_more() -> None:
    lifecycle = a_lifecycle(D0, D1)
    arrive(lifecycle, a_spec("a", split=0, max_tokens=20))
    arrive(lifecycle, a_spec("b", split=0))
    emit(lifecycle, tokens("a", 0, 7, finish=STOP))
    assert places(arrive(lifecycle, a_spec("c", split=0))) == [("c", None, D0)]
    assert places(arrive(lifecycle, a_spec("d", split=0))) == [("d", None, D0)]


def test_nothing_new_goes_to_a_member_that_drains() -> None:
    lifecycle = a_lifecycle(P0, P1, D0)
    for name in ("a", "b", "c"):
        arrive(lifecycle, a_spec(name))
    assert lifecycle.handle(LoadReported(P0, GENERATION[P0], Load(draining=True))) == []
    assert release(lifecycle, "a") == []
    assert places(release(lifecycle, "b", P1)) == [("c", P1, D0)]
    arrive(lifecycle, a_spec("d"))
    assert kinds(lifecycle.handle(LoadReported(P1, GENERATION[P1], Load(draining=True)))) == {
        "d": FailureKind.NO_INSTANCE
    }
    assert "prefill instance" in str(lifecycle.not_ready())
    assert lifecycle.holdings().requests == 3, "what runs there goes on"
