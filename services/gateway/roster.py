"""The members of the mesh as an operator sees them: what each registered, and what it held last."""

from common.ids import InstanceId
from common.messages.control import Load
from common.messages.operator import InstanceInfo
from services.scheduling.members import LoadReported, MemberJoined, MemberLost


class Roster:
    """Follows the membership. A member that has not reported yet is shown with nothing held."""

    def __init__(self) -> None:
        self._instances: dict[InstanceId, InstanceInfo] = {}

    def heard(self, change: MemberJoined | MemberLost | LoadReported) -> None:
        """What the membership says has happened, in its order."""
        match change:
            case MemberJoined(member):
                self._instances[member.instance] = InstanceInfo(member, Load())
            case MemberLost(instance):
                self._instances.pop(instance, None)
            case LoadReported(instance, _, load):
                if (known := self._instances.get(instance)) is not None:
                    self._instances[instance] = InstanceInfo(known.member, load)

    def instances(self) -> tuple[InstanceInfo, ...]:
        """Every member, in the order of joining."""
        return tuple(self._instances.values())
