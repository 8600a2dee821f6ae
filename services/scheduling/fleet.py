"""What the gateway has given to each member: slots at P, outstanding requests at D."""

from dataclasses import dataclass, field

from common.ids import Generation, InstanceId, RequestId
from common.messages.control import Load, Role
from services.scheduling.lifecycle_events import IllegalEvent
from services.scheduling.members import LoadReported, Member
from services.scheduling.routing import InstanceView, MeshView


@dataclass(slots=True)
class _Instance:
    member: Member
    most_requests: int
    tokens_of: dict[RequestId, int] = field(default_factory=dict)
    tokens: int = 0
    load: Load | None = None

    def is_draining(self) -> bool:
        return self.load is not None and self.load.draining

    def view(self) -> InstanceView:
        held = len(self.tokens_of)
        return InstanceView(
            member=self.member,
            outstanding_requests=held,
            outstanding_tokens=self.tokens,
            has_room=held < self.most_requests,
            load=self.load,
        )


class Fleet:
    """The members, each in one life, with the requests each may hold something of.

    A P takes `prefill_slots` requests at a time, a D `decode_batches` times its max_batch.
    Names of a life that is over are answered as "holds nothing": late messages are ordinary.
    """

    def __init__(self, prefill_slots: int, decode_batches: int) -> None:
        self._prefill_slots = prefill_slots
        self._decode_batches = decode_batches
        self._instances: dict[InstanceId, _Instance] = {}

    def join(self, member: Member) -> None:
        """A new life; raises IllegalEvent while another life of the instance is here."""
        if (present := self._instances.get(member.instance)) is not None:
            raise IllegalEvent(
                f"MemberJoined of instance {member.instance!r}, generation {member.generation}, while generation "
                f"{present.member.generation} is a member; that life must be lost first"
            )
        is_prefill = member.role is Role.PREFILL
        most = self._prefill_slots if is_prefill else self._decode_batches * member.max_batch
        self._instances[member.instance] = _Instance(member, most)

    def lose(self, instance: InstanceId, generation: Generation) -> tuple[RequestId, ...]:
        """Forget a life; returns the requests that it may have held something of."""
        if (life := self._life(instance, generation)) is None:
            return ()
        del self._instances[instance]
        return tuple(life.tokens_of)

    def report(self, event: LoadReported) -> None:
        """Keep what a member said of itself."""
        if (life := self._life(event.instance, event.generation)) is not None:
            life.load = event.load

    def member(self, instance: InstanceId) -> Member:
        """A present member; KeyError otherwise."""
        return self._instances[instance].member

    def give(self, instance: InstanceId, request: RequestId, tokens: int) -> None:
        """A present member may hold something of `request` from now on; raises ValueError where it has no room."""
        life = self._instances[instance]
        if len(life.tokens_of) >= life.most_requests:
            raise ValueError(f"instance {instance!r} holds {life.most_requests} requests, the most it may")
        life.tokens_of[request] = tokens
        life.tokens += tokens

    def release(self, instance: InstanceId, generation: Generation, request: RequestId) -> bool:
        """That life holds nothing of `request` any more; returns whether it did until now."""
        life = self._life(instance, generation)
        if life is None or request not in life.tokens_of:
            return False
        life.tokens -= life.tokens_of.pop(request)
        return True

    def holds(self, instance: InstanceId, generation: Generation, request: RequestId) -> bool:
        """Whether that life is present and may hold something of `request`."""
        life = self._life(instance, generation)
        return life is not None and request in life.tokens_of

    def is_held(self, request: RequestId) -> bool:
        """Whether any member may hold something of `request`."""
        return any(request in life.tokens_of for life in self._instances.values())

    def slots_taken(self) -> int:
        """Slots taken at all prefill instances together."""
        return sum(len(life.tokens_of) for life in self._of(Role.PREFILL))

    def view(self) -> MeshView:
        """The fleet as a policy sees it: without the members that drain, for nothing new may be sent there."""
        return MeshView(
            prefills=tuple(life.view() for life in self._of(Role.PREFILL) if not life.is_draining()),
            decodes=tuple(life.view() for life in self._of(Role.DECODE) if not life.is_draining()),
        )

    def _of(self, role: Role) -> list[_Instance]:
        return [life for life in self._instances.values() if life.member.role is role]

    def _life(self, instance: InstanceId, generation: Generation) -> _Instance | None:
        life = self._instances.get(instance)
        return life if life is not None and life.member.generation == generation else None
