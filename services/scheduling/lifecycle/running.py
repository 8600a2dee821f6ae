"""A request that has been placed and has not ended, and the words for how it can fail."""

from dataclasses import dataclass

from common.errors import Failure, FailureKind
from common.ids import Generation, InstanceId
from common.messages.control import Role
from services.scheduling.lifecycle.numbering import TokenNumbers
from services.scheduling.membership.members import MemberLost
from services.scheduling.request import RequestSpec

Life = tuple[InstanceId, Generation]


@dataclass(slots=True)
class Running:
    """One request at its instances."""

    spec: RequestSpec
    prefill: Life | None
    decode: Life
    numbers: TokenNumbers
    landed: bool
    """D holds the KV of [0, split): P may go."""
    split: int = 0
    """Tokens that P computes."""
    reused: int = 0
    """Leading tokens that nobody computes for this request."""
    emitted: int = 0
    """Tokens passed on, over all choices."""

    def lives(self) -> tuple[Life, ...]:
        """Who may hold something of it."""
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)


def name_of(life: Life) -> str:
    """An instance in a message."""
    return f"instance {life[0]!r}"


def late_in_queue(waits_for: str) -> Failure:
    """Of a request that was never placed."""
    return Failure(FailureKind.DEADLINE_EXCEEDED, f"the deadline passed while the request waited for {waits_for}")


def late_at_work(run: Running) -> Failure:
    """Of one that was."""
    where = " and ".join(map(name_of, run.lives()))
    return Failure(FailureKind.DEADLINE_EXCEEDED, f"the deadline passed while the request ran at {where}")


def loss_of(event: MemberLost, run: Running) -> Failure:
    """Of one that needed the life that is over."""
    if run.prefill == (event.instance, event.generation):
        kind, role, when = FailureKind.PREFILL_LOST, Role.PREFILL, "before the KV of the request had landed"
    else:
        kind, role, when = FailureKind.DECODE_LOST, Role.DECODE, "before the request had finished"
    message = f"{role} instance {event.instance!r} was lost ({event.reason}) {when}; send the request again"
    return Failure(kind, message, event.instance)
