"""What the bench process and the giver process say to each other: JSON lines on the giver's stdin and stdout."""

import msgspec

from common.kv.ticket import Ticket


class GiverPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to start a giver; its one argument."""

    schemes: tuple[str, ...]
    """Backends to listen with."""
    segment_bytes: int
    num_tokens: int
    """The largest offer."""
    raw_bytes: int
    """The largest raw move; 0: there will be none."""


class Listening(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The giver's first line. Endpoints by scheme."""

    endpoints: dict[str, str]


class OfferKV(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Offer tokens [0, num_tokens) by one backend; answered by Offered."""

    name: str
    scheme: str
    num_tokens: int
    pace_s: float = 0.0
    """Announce the layers evenly over this time, as if they were being computed; 0: all at once, before the answer."""


class AwaitEnd(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Wait for the end of the last offer; answered by OfferEnded, or by Trouble if it was not acknowledged."""


class MeetPeer(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Get ready to move bytes with a raw peer; answered by PeerMet."""

    peer: str
    hello: bytes


class GiveRaw(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Move so many bytes with a raw peer; answered by Giving when the giver waits for the start, then by Gave."""

    peer: str
    num_bytes: int


ToGiver = OfferKV | AwaitEnd | MeetPeer | GiveRaw


class Offered(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The offer is open."""

    ticket: Ticket
    cpu_s: float
    """CPU time of the giver so far."""


class OfferEnded(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The sink has acknowledged everything."""

    cpu_s: float
    computed_at_s: float
    """When the last layer was announced, by the machine's monotonic clock, which all its processes share."""


class PeerMet(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The giver's side of the acquaintance."""

    hello: bytes


class Giving(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The giver is about to wait for the start."""

    cpu_s: float


class Gave(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The giver's part is done."""

    cpu_s: float


class Trouble(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A command could not be carried out."""

    message: str


FromGiver = Listening | Offered | OfferEnded | PeerMet | Giving | Gave | Trouble
