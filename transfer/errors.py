"""What can go wrong in a hand-off. Every message is for a person: subject, value, what was allowed, what to do."""

from enum import StrEnum

from common.errors import PdmeshError

_MOST_CHARACTERS = 2000
_MOST_OF_A_VALUE = 400


class RefusalReason(StrEnum):
    """Why P does not serve a taker."""

    WIRE_VERSION = "wire_version"
    GENERATION = "generation"
    UNKNOWN_TICKET = "unknown_ticket"
    SECRET = "secret"
    ALREADY_TAKEN = "already_taken"
    ENDED = "ended"
    NUM_TOKENS = "num_tokens"
    LAYOUT = "layout"
    LIMITS = "limits"


def shortened(words: str) -> str:
    """What may hold a peer's own words, which are as long as it likes, cut to what fits a log and an answer."""
    return words if len(words) <= _MOST_CHARACTERS else f"{words[:_MOST_CHARACTERS]}… ({len(words)} characters)"


def brief(value: object) -> str:
    """The repr of one of a peer's values; cut, so that what is said after it is still read."""
    text = repr(value)
    return text if len(text) <= _MOST_OF_A_VALUE else f"{text[:_MOST_OF_A_VALUE]}…"


class TransferError(PdmeshError):
    """Base of every way in which a hand-off fails. The message is shortened: much of it may be a peer's."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


class Refused(TransferError):
    """P, or D itself before it asks, will not do this hand-off; asking again with the same ticket will not help.

    `field` names what did not fit (a field of the layout, of the ticket, of the offer) where one did.
    """

    def __init__(self, reason: RefusalReason, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


class LayoutMismatch(TransferError):
    """No plan leads from one layout to the other; names the field, both values, and what would work."""

    def __init__(self, field: str, source: object, target: object, remedy: str) -> None:
        super().__init__(f"{field!r} is {brief(source)} at the source and {brief(target)} at the sink; {remedy}")
        self.field = field


class PeerLost(TransferError):
    """The peer cannot be reached, or its connection ended before the hand-off did."""


class Unreachable(PeerLost):
    """No connection to the peer could be made; another path may lead there."""


class TimedOut(TransferError):
    """The peer showed no sign of life, or the deadline passed."""


class Corrupt(TransferError):
    """Damaged bytes, or a peer that breaks the protocol. Nothing that came with it may be used."""


class Aborted(TransferError):
    """The peer gave the hand-off up and said why."""


class Stopped(TransferError):
    """This side ended the hand-off: it is closing, or has joined under a new generation."""
