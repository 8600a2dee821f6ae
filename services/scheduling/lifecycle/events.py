"""What the life cycle of requests hears (events, past tense) and asks for (effects, imperative)."""

import msgspec

from common.errors import Failure, PdmeshError
from common.ids import InstanceId, RequestId, TransferId
from common.messages.control import (
    Abort,
    EmittedTokens,
    JobFailed,
    KVLanded,
    LinkMeasured,
    PrefillReleased,
    PrefixReused,
    RunDecode,
    RunPrefill,
    TokensEmitted,
)
from services.scheduling.membership.members import LoadReported, MemberJoined, MemberLost
from services.scheduling.placement import Placement
from services.scheduling.request import RequestSpec
from services.scheduling.tick import Tick


class IllegalEvent(PdmeshError):
    """An event that cannot happen in this state: a fault of this process. Names state and event."""


class Arrived(msgspec.Struct, frozen=True):
    """A client asks. `transfer` and `secret` are drawn by the shell, for the ticket of a hand-off."""

    now: float
    spec: RequestSpec
    transfer: TransferId
    secret: bytes


class ClientGone(msgspec.Struct, frozen=True):
    """Nobody waits for the request any more."""

    request: RequestId
    is_answered: bool = False
    """Its text had ended, by a stop string: what was emitted is as long as the answer is."""


class ShutdownRequested(msgspec.Struct, frozen=True):
    """Accept nothing more; what was accepted goes on."""


LifecycleEvent = (
    TokensEmitted
    | PrefillReleased
    | PrefixReused
    | KVLanded
    | JobFailed
    | LinkMeasured
    | Arrived
    | ClientGone
    | MemberJoined
    | MemberLost
    | LoadReported
    | Tick
    | ShutdownRequested
)
"""The first six are the workers' own messages, unchanged."""


class Send(msgspec.Struct, frozen=True):
    """Send `message` to the present life of `instance`."""

    instance: InstanceId
    message: RunPrefill | RunDecode | Abort


class Place(msgspec.Struct, frozen=True):
    """Tell the client's stream where the request runs; comes before any of its tokens."""

    request: RequestId
    placement: Placement


class Reused(msgspec.Struct, frozen=True):
    """The KV of the first `tokens` tokens of the prompt was there: nobody computes it for this request."""

    request: RequestId
    tokens: int


class Deliver(msgspec.Struct, frozen=True):
    """Pass tokens on to the client's stream; gap-free and in order per choice."""

    tokens: EmittedTokens


class Finish(msgspec.Struct, frozen=True):
    """Every choice has ended; the last effect for the client's stream."""

    request: RequestId


class Fail(msgspec.Struct, frozen=True):
    """There will be no (more) answer; the last effect for the client's stream."""

    request: RequestId
    failure: Failure


LifecycleEffect = Send | Place | Reused | Deliver | Finish | Fail


class Holdings(msgspec.Struct, frozen=True):
    """What the life cycle holds; all zero when every request has ended and every prefill slot is free again."""

    requests: int
    """Placed and not ended."""
    queued: int
    slots: int
    """Slots taken at prefill instances, those of ended requests included."""
