"""Which links the mesh has and how fast each is: who has to meet whom, and what came of it. Pure."""

import msgspec

from common.ids import InstanceId
from common.messages.control import LinkMeasured, MeetPrefill, Register, Role
from services.scheduling.membership.members import Member, MemberJoined, MemberLost


class Meet(msgspec.Struct, frozen=True):
    """Effect: tell this decode instance to measure its links to a prefill instance."""

    instance: InstanceId
    message: MeetPrefill


class Links:
    """The links between the members. Each decode instance meets each prefill instance once in both their lives."""

    def __init__(self) -> None:
        self._members: dict[InstanceId, Member] = {}
        self._measured: dict[tuple[InstanceId, InstanceId], LinkMeasured] = {}

    def joined(self, event: MemberJoined) -> tuple[Meet, ...]:
        """Who has to meet whom now."""
        new = event.member
        self._members[new.instance] = new
        others = [member for member in self._members.values() if member.role is not new.role]
        pairs = [(new, other) if new.role is Role.DECODE else (other, new) for other in others]
        return tuple(Meet(decode.instance, _introduction(prefill)) for decode, prefill in pairs)

    def lost(self, event: MemberLost) -> None:
        """Its links are gone with it."""
        self._members.pop(event.instance, None)
        self._measured = {pair: found for pair, found in self._measured.items() if event.instance not in pair}

    def measured(self, message: LinkMeasured) -> bool:
        """Whether the message counts: both are members, in the lives that met."""
        decode, prefill = self._members.get(message.instance), self._members.get(message.peer)
        counts = (
            decode is not None
            and prefill is not None
            and (decode.generation, prefill.generation) == (message.generation, message.peer_generation)
        )
        if counts:
            self._measured[message.peer, message.instance] = message
        return counts

    def table(self) -> tuple[LinkMeasured, ...]:
        """What is known, by prefill and then decode instance."""
        return tuple(self._measured[pair] for pair in sorted(self._measured))


def _introduction(prefill: Register) -> MeetPrefill:
    return MeetPrefill(prefill.instance, prefill.generation, prefill.endpoints)
