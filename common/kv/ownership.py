"""Who may touch the blocks of one hand-off, at P: a pure machine, one value per hand-off.

    OFFERED ──► ACCEPTED ──► LANDED ────┐
       │           ├───────► FAILED ────┤
       ├───────────┼───────► EXPIRED ───┼──► RELEASED   (as soon as nobody reads the blocks)
       └───────────┴───────► WITHDRAWN ─┘

The first end wins; what comes after it is late and changes nothing.  Blocks are read between ReadBegan and ReadEnded
only, and a read may begin in ACCEPTED only, so a hand-off that has ended drains and is then released exactly once.
"""

from enum import StrEnum

import msgspec

from common.errors import PdmeshError


class Phase(StrEnum):
    """Where a hand-off is."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    LANDED = "landed"
    FAILED = "failed"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    RELEASED = "released"


class _Value(msgspec.Struct, frozen=True):
    pass


# ---------------------------------------------------------------- how an offer ends


class Acknowledged(_Value, frozen=True):
    """D holds everything: `payload_bytes` of KV."""

    payload_bytes: int


class Expired(_Value, frozen=True):
    """The deadline passed first."""


class Withdrawn(_Value, frozen=True):
    """P took the offer back."""

    reason: str


class TakerFailed(_Value, frozen=True):
    """The taker that was accepted is lost, or spoke nonsense."""

    reason: str


OfferEnd = Acknowledged | Expired | Withdrawn | TakerFailed


# ---------------------------------------------------------------- events


class TakerAccepted(_Value, frozen=True):
    """D showed the right ticket and is being served."""


class ReadBegan(_Value, frozen=True):
    """Somebody starts to read the blocks."""


class ReadEnded(_Value, frozen=True):
    """Somebody has stopped reading the blocks."""


class Ended(_Value, frozen=True):
    """The hand-off is over for the reason in `end`; blocks may still be read for a moment."""

    end: OfferEnd


Event = TakerAccepted | ReadBegan | ReadEnded | Ended


class IllegalEvent(PdmeshError):
    """An event that cannot happen in this state: a bug of the caller, never of the peer."""

    def __init__(self, handoff: "Handoff", event: Event) -> None:
        super().__init__(f"{event!r} cannot happen to a hand-off in {handoff!r}")


class Handoff(msgspec.Struct, frozen=True):
    """The state of one hand-off; a fresh one is OFFERED."""

    phase: Phase = Phase.OFFERED
    readers: int = 0
    end: OfferEnd | None = None

    @property
    def may_read(self) -> bool:
        """Whether ReadBegan is legal now."""
        return self.phase is Phase.ACCEPTED

    @property
    def is_over(self) -> bool:
        """Whether an end has been reached; the blocks are free only once released."""
        return self.end is not None


class Release(_Value, frozen=True):
    """Effect: the blocks belong to their owner again and nobody reads them. Comes once for each hand-off."""

    end: OfferEnd


_END_PHASE: dict[type[OfferEnd], Phase] = {
    Acknowledged: Phase.LANDED,
    Expired: Phase.EXPIRED,
    Withdrawn: Phase.WITHDRAWN,
    TakerFailed: Phase.FAILED,
}

_ENDS_FROM: dict[Phase, frozenset[Phase]] = {
    Phase.OFFERED: frozenset({Phase.EXPIRED, Phase.WITHDRAWN}),
    Phase.ACCEPTED: frozenset({Phase.LANDED, Phase.FAILED, Phase.EXPIRED, Phase.WITHDRAWN}),
}
"""The ends that can be reached from each phase; in every other phase an end is late and changes nothing."""


def step(handoff: Handoff, event: Event) -> tuple[Handoff, Release | None]:
    """The state after `event`, and the release it brings about if any; raises IllegalEvent."""
    match event:
        case TakerAccepted() if handoff.phase is Phase.OFFERED:
            return msgspec.structs.replace(handoff, phase=Phase.ACCEPTED), None
        case ReadBegan() if handoff.may_read:
            return msgspec.structs.replace(handoff, readers=handoff.readers + 1), None
        case ReadEnded() if handoff.readers > 0:
            return _released_if_drained(msgspec.structs.replace(handoff, readers=handoff.readers - 1))
        case Ended(end=end):
            return _end(handoff, event, end)
        case _:
            raise IllegalEvent(handoff, event)


def _end(handoff: Handoff, event: Event, end: OfferEnd) -> tuple[Handoff, Release | None]:
    if handoff.is_over:
        return handoff, None
    phase = _END_PHASE[type(end)]
    if phase not in _ENDS_FROM[handoff.phase]:
        raise IllegalEvent(handoff, event)
    return _released_if_drained(msgspec.structs.replace(handoff, phase=phase, end=end))


def _released_if_drained(handoff: Handoff) -> tuple[Handoff, Release | None]:
    if handoff.end is None or handoff.readers > 0:
        return handoff, None
    return msgspec.structs.replace(handoff, phase=Phase.RELEASED), Release(handoff.end)
