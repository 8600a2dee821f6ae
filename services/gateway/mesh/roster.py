"""The members of the mesh as an operator sees them: what each registered, and what it held last."""

from typing import Final

import msgspec

from common.clock import Clock
from common.ids import InstanceId
from common.messages.control import Load
from common.messages.operator import InstanceInfo
from services.scheduling.membership.members import LoadReported, LossReason, Member, MemberJoined, MemberLost

MOST_LOST: Final = 16


class Lost(msgspec.Struct, frozen=True):
    """One that was a member and has not joined again."""

    member: Member
    reason: LossReason
    at: float
    """By the roster's clock."""


class Roster:
    """Follows the membership. A member that has not reported yet is shown with nothing held.

    The last MOST_LOST that were lost are remembered, each until it joins again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._instances: dict[InstanceId, InstanceInfo] = {}
        self._lost: dict[InstanceId, Lost] = {}

    def heard(self, change: MemberJoined | MemberLost | LoadReported) -> None:
        """What the membership says has happened, in its order."""
        match change:
            case MemberJoined(member):
                self._instances[member.instance] = InstanceInfo(member, Load())
                self._lost.pop(member.instance, None)
            case MemberLost(instance, _, reason):
                if (gone := self._instances.pop(instance, None)) is not None:
                    self._note_lost(gone.member, reason)
            case LoadReported(instance, _, load):
                if (known := self._instances.get(instance)) is not None:
                    self._instances[instance] = InstanceInfo(known.member, load)

    def member(self, instance: InstanceId) -> Member | None:
        """What a member registered; None where it is none."""
        return None if (known := self._instances.get(instance)) is None else known.member

    def _note_lost(self, member: Member, reason: LossReason) -> None:
        self._lost[member.instance] = Lost(member, reason, self._clock.now())
        if len(self._lost) > MOST_LOST:
            del self._lost[next(iter(self._lost))]

    def lost(self) -> tuple[Lost, ...]:
        """Those that were members, the longest gone first."""
        return tuple(self._lost.values())

    def instances(self) -> tuple[InstanceInfo, ...]:
        """Every member, in the order of joining."""
        return tuple(self._instances.values())
