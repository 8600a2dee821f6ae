"""What the gateway has given to each member: slots at P, outstanding requests at D."""

from collections.abc import Mapping

from common.ids import Generation, InstanceId, RequestId
from common.messages.control import DecodeProgress, EmittedTokens, LinkFigures, LinkMeasured, Role
from services.scheduling.ledgers.fleet_instance import FleetInstance
from services.scheduling.ledgers.prefixes import HeldPrefixes
from services.scheduling.ledgers.work_ledger import Share
from services.scheduling.lifecycle.events import IllegalEvent
from services.scheduling.membership.members import LoadReported, Member
from services.scheduling.policies.routing import InstanceView, MeshView, token_limit
from services.scheduling.request import RequestSpec


class Fleet:
    """The members, each in one life, with the requests each may hold something of.

    A P takes `prefill_slots` requests at a time, a D `decode_batches` times its max_batch.
    Names of a life that is over are answered as "holds nothing": late messages are ordinary.
    """

    def __init__(self, prefill_slots: int, decode_batches: int) -> None:
        self._prefill_slots = prefill_slots
        self._decode_batches = decode_batches
        self._instances: dict[InstanceId, FleetInstance] = {}
        self._holders: dict[RequestId, int] = {}
        """How many members may hold something of a request."""
        self._slots_taken = 0
        self._prefixes = HeldPrefixes()
        self._links: dict[tuple[InstanceId, InstanceId], LinkFigures] = {}
        self._views: dict[Role, dict[InstanceId, InstanceView]] = {Role.PREFILL: {}, Role.DECODE: {}}
        """Of those that do not drain, in order of joining; those in `_changed` are out of date."""
        self._changed: dict[InstanceId, FleetInstance] = {}

    def join(self, member: Member) -> None:
        """A new life; raises IllegalEvent while another life of the instance is here."""
        if (present := self._instances.get(member.instance)) is not None:
            raise IllegalEvent(
                f"MemberJoined of instance {member.instance!r}, generation {member.generation}, while generation "
                f"{present.member.generation} is a member; that life must be lost first"
            )
        is_prefill = member.role is Role.PREFILL
        most = self._prefill_slots if is_prefill else self._decode_batches * member.max_batch
        self._instances[member.instance] = FleetInstance(member, most)
        for life in self._instances.values():
            if life.member.role is member.role:
                # Whoever deals by counts begins anew: the new one would be dealt everything until it had caught up.
                life.deal_anew()
                self._change(life)

    def lose(self, instance: InstanceId, generation: Generation) -> tuple[RequestId, ...]:
        """Forget a life; returns the requests that it may have held something of."""
        if (life := self._life(instance, generation)) is None:
            return ()
        requests = life.ledger.requests()
        for request in requests:
            self._released(life, request)
        del self._instances[instance]
        self._prefixes.forget(instance)
        self._changed.pop(instance, None)
        self._views[life.member.role].pop(instance, None)
        self._links = {pair: figures for pair, figures in self._links.items() if instance not in pair}
        return requests

    def report(self, event: LoadReported) -> None:
        """Keep what a member said of itself."""
        if (life := self._life(event.instance, event.generation)) is not None:
            life.report(event.load)
            self._change(life)
            if event.prefixes is not None:
                self._prefixes.note(event.instance, event.prefixes)

    def is_draining(self, instance: InstanceId, generation: Generation) -> bool:
        """Whether that life has said that it takes nothing new."""
        return (life := self._life(instance, generation)) is not None and life.is_draining()

    def measured(self, event: LinkMeasured) -> None:
        """Keep the figures of the link that a pair uses."""
        lives = (self._life(event.peer, event.peer_generation), self._life(event.instance, event.generation))
        if None not in lives and event.figures:
            self._links[event.peer, event.instance] = event.figures[0]

    def member(self, instance: InstanceId) -> Member:
        """A present member; KeyError otherwise."""
        return self._instances[instance].member

    def give(self, instance: InstanceId, request: RequestId, share: Share) -> None:
        """A present member may hold something of `request` from now on; raises ValueError where it has no room."""
        life = self._instances[instance]
        life.give(request, share)
        self._change(life)
        self._holders[request] = self._holders.get(request, 0) + 1
        self._slots_taken += life.member.role is Role.PREFILL

    def computed(self, instance: InstanceId, generation: Generation, request: RequestId) -> None:
        """That life has computed its part of the prompt."""
        if (life := self._life(instance, generation)) is not None:
            life.computed(request)
            self._change(life)

    def reused(self, instance: InstanceId, generation: Generation, request: RequestId, tokens: int) -> None:
        """That life had the KV of some of the prompt: of its part `tokens` are still to be computed."""
        if (life := self._life(instance, generation)) is not None:
            life.reused(request, tokens)
            self._change(life)

    def emitted(self, instance: InstanceId, generation: Generation, new: EmittedTokens) -> bool:
        """Tokens of that life that were not known before; whether one of its sequences has come to its last but one."""
        if (life := self._life(instance, generation)) is None:
            return False
        self._change(life)
        return life.emitted(new.request, new.choice, len(new.tokens), ended=new.finish is not None)

    def progressed(self, instance: InstanceId, generation: Generation, progress: DecodeProgress) -> None:
        """Where a decode instance stands after a step."""
        if (life := self._life(instance, generation)) is not None:
            life.progressed(progress)
            self._change(life)

    def release(self, instance: InstanceId, generation: Generation, request: RequestId) -> bool:
        """That life holds nothing of `request` any more; returns whether it did until now."""
        life = self._life(instance, generation)
        if life is None or request not in life.ledger:
            return False
        life.release(request)
        self._released(life, request)
        self._change(life)
        return True

    def holds(self, instance: InstanceId, generation: Generation, request: RequestId) -> bool:
        """Whether that life is present and may hold something of `request`."""
        life = self._life(instance, generation)
        return life is not None and request in life.ledger

    def is_held(self, request: RequestId) -> bool:
        """Whether any member may hold something of `request`."""
        return request in self._holders

    def slots_taken(self) -> int:
        """Slots taken at all prefill instances together."""
        return self._slots_taken

    def held(self, request: RequestSpec) -> Mapping[InstanceId, int]:
        """Leading tokens of its prompt whose KV a member has, by what it said last; none that are of use where every
        position of the prompt must be computed.
        """
        if request.is_scored:
            return {}
        return self._prefixes.of(request, [life.member for life in self._instances.values()])

    def view(
        self, request: RequestSpec | None = None, expected_output: float | None = None, waiting: int = 0
    ) -> MeshView:
        """The fleet as a policy sees it: without the members that drain, for nothing new may be sent there.

        `request` is the one that is to be placed, `expected_output` the length of its answer, `waiting` how many wait.
        """
        for name, life in self._changed.items():
            views = self._views[life.member.role]
            if life.is_draining():
                views.pop(name, None)
            else:
                views[name] = life.view()
        self._changed.clear()
        return MeshView(
            prefills=tuple(self._views[Role.PREFILL].values()),
            decodes=tuple(self._views[Role.DECODE].values()),
            links=self._links,
            expected_output=expected_output,
            waiting=waiting,
            held={} if request is None else self.held(request),
        )

    def everyone(self) -> MeshView:
        """The fleet with the members that drain: who could serve, were they asked to."""
        views = [life.view() for life in self._instances.values()]
        return MeshView(
            prefills=tuple(view for view in views if view.member.role is Role.PREFILL),
            decodes=tuple(view for view in views if view.member.role is Role.DECODE),
            links=self._links,
        )

    def decode_limits(self) -> list[int]:
        """Most tokens of one request that each decode instance holds, those that drain included."""
        members = (life.member for life in self._instances.values())
        return [token_limit(member) for member in members if member.role is Role.DECODE]

    def check(self) -> None:
        """Count every ledger anew; raises LedgerError where one is wrong. For simulations and tests."""
        for life in self._instances.values():
            life.ledger.check()

    def _change(self, life: FleetInstance) -> None:
        self._changed[life.member.instance] = life

    def _released(self, life: FleetInstance, request: RequestId) -> None:
        self._slots_taken -= life.member.role is Role.PREFILL
        self._holders[request] -= 1
        if not self._holders[request]:
            del self._holders[request]

    def _life(self, instance: InstanceId, generation: Generation) -> FleetInstance | None:
        life = self._instances.get(instance)
        return life if life is not None and life.member.generation == generation else None
