"""The pure machine: no socket, a clock set by hand."""

import pytest

from common.bus import membership
from common.bus.membership import Deliver, DropJobs, End, Ended, Joined, Joining, SendHeartbeat, SendRegister
from common.clock import ManualClock
from common.ids import Generation, RequestId
from common.messages.control import Abort, HeartbeatAck, Rejected, Welcome

WELCOME = Welcome(epoch=Generation(7), heartbeat_s=0.5, lease_s=3.0)
ACK = HeartbeatAck(epoch=Generation(7))
ABORT = Abort(request=RequestId("r"))


@pytest.fixture
def clock():
    return ManualClock(100.0)


@pytest.fixture
def joined(clock):
    state, _ = membership.received(membership.start(clock.now()), WELCOME, clock.now())
    return state


def test_registers_at_once_and_again_when_unanswered(clock):
    state = membership.start(clock.now())
    assert membership.ticked(state, clock.now()) == (state, (SendRegister(),))
    state = membership.register_sent(state, clock.now(), left=True)
    clock.advance(membership.ANSWER_TIMEOUT_S - 0.01)
    assert membership.ticked(state, clock.now())[1] == ()
    clock.advance(0.01)
    assert membership.ticked(state, clock.now())[1] == (SendRegister(),)


def test_retries_without_a_connection_back_off_to_a_bound(clock):
    state = membership.start(clock.now())
    pauses = []
    for _ in range(8):
        state = membership.register_sent(state, clock.now(), left=False)
        pauses.append(membership.wake_at_s(state) - clock.now())
        clock.advance(pauses[-1])
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])


def test_heartbeats_follow_the_pace_of_the_welcome(clock, joined):
    state, effects = membership.ticked(joined, clock.now())
    assert effects == (SendHeartbeat(),)
    assert membership.ticked(state, clock.now())[1] == ()
    clock.advance(0.5)
    assert membership.ticked(state, clock.now())[1] == (SendHeartbeat(),)


def test_lease_without_acknowledgement_is_lost_and_an_acknowledgement_renews_it(clock, joined):
    state, _ = wait(clock, joined, 2.9)
    state, _ = membership.received(state, ACK, clock.now())
    state, _ = wait(clock, state, 2.9)
    assert isinstance(state, Joined)
    state, effects = wait(clock, state, 0.2)
    assert isinstance(state, Joining)
    assert effects == [DropJobs("the gateway acknowledged nothing for 3.0 s")]
    assert membership.ticked(state, clock.now())[1] == (SendRegister(),)


def test_time_in_which_this_process_stood_still_is_no_silence_of_the_gateway(clock, joined):
    state, _ = wait(clock, joined, 1.0)
    clock.advance(500.0)
    state, effects = membership.ticked(state, clock.now())
    assert isinstance(state, Joined)
    assert effects == (SendHeartbeat(),)
    state, _ = wait(clock, state, 1.4)
    assert isinstance(state, Joined)
    state, _ = wait(clock, state, 0.7)
    assert isinstance(state, Joining), "the silence before the pause counts"


def wait(clock, state, seconds):
    """Tick whenever there is something to do, as the shell does, until a state is lost or time is up."""
    until_s = clock.now() + seconds
    effects = []
    while isinstance(state, Joined) and (at_s := membership.wake_at_s(state)) <= until_s:
        clock.advance(max(0.0, at_s - clock.now()))
        state, effects = membership.ticked(state, clock.now())
    clock.advance(max(0.0, until_s - clock.now()))
    return state, list(effects)


@pytest.mark.parametrize(
    "message",
    [
        HeartbeatAck(epoch=Generation(8)),
        Welcome(epoch=Generation(8), heartbeat_s=0.5, lease_s=3.0),
        Rejected(reason="its lease ended"),
    ],
)
def test_another_epoch_or_a_rejection_loses_the_membership(clock, joined, message):
    state, effects = membership.received(joined, message, clock.now())
    assert isinstance(state, Joining)
    assert isinstance(effects[0], DropJobs)


def test_a_repeated_welcome_of_the_same_epoch_changes_nothing_but_the_lease(clock, joined):
    clock.advance(1.0)
    state, effects = membership.received(joined, WELCOME, clock.now())
    assert effects == ()
    assert state.acked_at_s == clock.now()


@pytest.mark.parametrize("start", ["joining", "joined"])
def test_a_fatal_rejection_ends_everything(clock, joined, start):
    state = joined if start == "joined" else membership.start(clock.now())
    state, effects = membership.received(state, Rejected(reason="another model", fatal=True), clock.now())
    assert (state, effects) == (Ended(), (End("another model"),))
    assert membership.wake_at_s(state) is None
    assert membership.ticked(state, clock.now()) == (state, ())
    assert membership.received(state, WELCOME, clock.now()) == (state, ())


def test_work_is_delivered_to_members_only(clock, joined):
    assert membership.received(joined, ABORT, clock.now()) == (joined, (Deliver(ABORT),))
    joining = membership.start(clock.now())
    assert membership.received(joining, ABORT, clock.now()) == (joining, ())


def test_a_rejected_registration_is_tried_again_later(clock):
    state = membership.register_sent(membership.start(clock.now()), clock.now(), left=True)
    state, effects = membership.received(state, Rejected(reason="not now"), clock.now())
    assert effects == ()
    assert clock.now() < membership.wake_at_s(state) <= clock.now() + membership.LAST_RETRY_S
