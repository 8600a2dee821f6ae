"""Membership of one worker, as a pure state machine: what happened and when in, what to do out.

    Joining ──Welcomed──▶ Joined ──lost──▶ Joining (a new generation over a new connection)
       │                    │
       └──rejected for good─┴────────────▶ Ended

A membership is lost when no acknowledgement came for a lease, the connection broke, the gateway is in another life
(epoch), it says that we are no member, or a message could not be sent.
"""

from typing import assert_never

import msgspec

from common.ids import Generation
from common.messages.control import HeartbeatAck, Rejected, ToWorker, Welcome

ANSWER_TIMEOUT_S = 1.0
"""A Register that left and is unanswered for so long is sent again."""
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0
"""Bounds of the pause before trying to join again; it doubles in between."""


class Joining(msgspec.Struct, frozen=True):
    """Not a member; the next Register is due at `register_at_s`."""

    register_at_s: float
    attempt: int = 0


class Joined(msgspec.Struct, frozen=True):
    """A member, until `acked_at_s + lease_s` unless another acknowledgement comes."""

    epoch: Generation
    heartbeat_s: float
    lease_s: float
    acked_at_s: float
    heartbeat_at_s: float


class Ended(msgspec.Struct, frozen=True):
    """Rejected for good."""


State = Joining | Joined | Ended


class SendRegister(msgspec.Struct, frozen=True):
    """Send Register; tell with `register_sent` whether it left."""


class SendHeartbeat(msgspec.Struct, frozen=True):
    """Send Heartbeat with the load of this moment."""


class DropJobs(msgspec.Struct, frozen=True):
    """The membership is lost: drop every job, draw a new generation and open a new connection."""

    reason: str


class Deliver(msgspec.Struct, frozen=True):
    """A message for the worker itself."""

    message: ToWorker


class End(msgspec.Struct, frozen=True):
    """Joining anew cannot help."""

    reason: str


Effect = SendRegister | SendHeartbeat | DropJobs | Deliver | End
Decision = tuple[State, tuple[Effect, ...]]


def start(now_s: float) -> State:
    """The state of a worker that has just started."""
    return Joining(register_at_s=now_s)


def wake_at_s(state: State) -> float | None:
    """When `ticked` has something to do; None: never."""
    match state:
        case Joining():
            return state.register_at_s
        case Joined():
            return min(state.heartbeat_at_s, state.acked_at_s + state.lease_s)
        case Ended():
            return None
        case _:
            assert_never(state)


def ticked(state: State, now_s: float) -> Decision:
    """Time has passed. Take in what has arrived first, so that a slow loop does not count as a silent gateway; nor does
    the time by which a heartbeat is late, in which this process stood still, perhaps with the whole machine.
    """
    match state:
        case Joining() if now_s >= state.register_at_s:
            return state, (SendRegister(),)
        case Joined() if now_s >= state.heartbeat_at_s:
            acked_at_s = min(now_s, state.acked_at_s + (now_s - state.heartbeat_at_s))
            return msgspec.structs.replace(state, acked_at_s=acked_at_s, heartbeat_at_s=now_s + state.heartbeat_s), (
                SendHeartbeat(),
            )
        case Joined() if now_s >= state.acked_at_s + state.lease_s:
            return lost(state, now_s, f"the gateway acknowledged nothing for {state.lease_s} s")
        case Joining() | Joined() | Ended():
            return state, ()
        case _:
            assert_never(state)


def register_sent(state: State, now_s: float, *, left: bool) -> State:
    """What SendRegister came to: it left and awaits an answer, or there was no connection to send it on."""
    if not isinstance(state, Joining):
        return state
    pause_s = ANSWER_TIMEOUT_S if left else retry_pause_s(state.attempt)
    return Joining(register_at_s=now_s + pause_s, attempt=state.attempt + 1)


def retry_pause_s(attempt: int) -> float:
    """Seconds before attempt + 1: doubling from FIRST_RETRY_S to LAST_RETRY_S."""
    return min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempt, 16))


def received(state: State, message: ToWorker, now_s: float) -> Decision:
    """The gateway said `message`."""
    match message:
        case Welcome():
            return _welcomed(state, message, now_s)
        case HeartbeatAck():
            return _acknowledged(state, message, now_s)
        case Rejected():
            return _rejected(state, message, now_s)
        case _:
            # Work sent before we are a member was meant for a life of ours that is over.
            return state, (Deliver(message),) if isinstance(state, Joined) else ()


def lost(state: State, now_s: float, reason: str) -> Decision:
    """The membership, or the attempt to get one, has failed for `reason`."""
    match state:
        case Joined():
            return Joining(register_at_s=now_s), (DropJobs(reason),)
        case Joining():
            return msgspec.structs.replace(state, register_at_s=now_s + retry_pause_s(state.attempt)), ()
        case Ended():
            return state, ()
        case _:
            assert_never(state)


def _welcomed(state: State, message: Welcome, now_s: float) -> Decision:
    match state:
        case Joined() if state.epoch != message.epoch:
            return lost(state, now_s, "another life of the gateway answered")
        case Joined() | Joining():
            return Joined(
                epoch=message.epoch,
                heartbeat_s=message.heartbeat_s,
                lease_s=message.lease_s,
                acked_at_s=now_s,
                heartbeat_at_s=now_s,
            ), ()
        case Ended():
            return state, ()
        case _:
            assert_never(state)


def _acknowledged(state: State, message: HeartbeatAck, now_s: float) -> Decision:
    if not isinstance(state, Joined):
        return state, ()
    if message.epoch != state.epoch:
        return lost(state, now_s, "another life of the gateway answered")
    return msgspec.structs.replace(state, acked_at_s=now_s), ()


def _rejected(state: State, message: Rejected, now_s: float) -> Decision:
    if message.fatal:
        return Ended(), (End(message.reason),)
    return lost(state, now_s, f"the gateway says: {message.reason}")
