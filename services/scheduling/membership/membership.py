"""Who is a member of the mesh: registrations, leases and generations, as a pure machine."""

from dataclasses import dataclass
from typing import assert_never

import msgspec

from common.ids import Generation, InstanceId
from common.kv.layout import KVLayout
from common.messages.control import Heartbeat, HeartbeatAck, Leaving, Register, Rejected, Welcome
from services.scheduling.membership.members import LoadReported, LossReason, Member, MemberJoined, MemberLost
from services.scheduling.tick import Tick

Peer = bytes
"""The address of a worker's connection: opaque here, only handed back in `Reply`."""

MembershipMessage = Register | Heartbeat | Leaving


class MessageReceived(msgspec.Struct, frozen=True):
    """A worker said something about its membership."""

    now: float
    peer: Peer
    message: MembershipMessage


class PeerUnreachable(msgspec.Struct, frozen=True):
    """A message to this connection could not be delivered: it is broken, or its reader has stopped reading."""

    peer: Peer


class KeyWithdrawn(msgspec.Struct, frozen=True):
    """The key that `instance` connected with is not allowed any more: it was revoked, or replaced by another."""

    instance: InstanceId


class Reply(msgspec.Struct, frozen=True):
    """Send `message` to the connection it answers."""

    peer: Peer
    message: Welcome | HeartbeatAck | Rejected


MembershipEvent = MessageReceived | PeerUnreachable | KeyWithdrawn | Tick
MembershipEffect = Reply | MemberJoined | MemberLost | LoadReported


_OF_THE_MODEL = ("model", "kind", "layers", "heads", "head_dim")


def incompatibility(mesh: KVLayout, other: KVLayout) -> str | None:
    """Which fields keep `other` out of a mesh of `mesh` layouts, with both values; None: it may join.

    The model must be the same; how its KV lies in memory may differ, since transfer translates.
    """
    differences = [
        f"{name} is {getattr(other, name)!r}, the mesh has {getattr(mesh, name)!r}"
        for name in _OF_THE_MODEL
        if getattr(other, name) != getattr(mesh, name)
    ]
    return "; ".join(differences) or None


@dataclass(slots=True)
class _Life:
    member: Member
    peer: Peer
    renewed_at: float
    ousted: tuple[Peer, Generation] | None
    """The life this one replaced where another process lived it: that process must end, not join anew, or the
    two would take the id from each other for ever."""


class Membership:
    """The members of one mesh. `epoch` is the life of the gateway that runs it, which means to tick every `tick_s`.

    The first member's layout is the mesh's until the gateway ends: what the gateway tokenises for must not change
    under it. Not thread-safe; `handle` is called with the events in order, and its effects are performed in order.
    """

    def __init__(self, epoch: Generation, *, heartbeat_s: float, lease_s: float, tick_s: float) -> None:
        self._tick_s = tick_s
        self._welcome = Welcome(epoch=epoch, heartbeat_s=heartbeat_s, lease_s=lease_s)
        self._ack = HeartbeatAck(epoch=epoch)
        self._lives: dict[InstanceId, _Life] = {}
        self._layout: KVLayout | None = None
        self._ticked_at: float | None = None

    def members(self) -> tuple[Member, ...]:
        """Everyone who may be used now, in the order of joining."""
        return tuple(life.member for life in self._lives.values())

    def peer(self, instance: InstanceId) -> Peer | None:
        """The connection of a member; None where the instance is not a member."""
        life = self._lives.get(instance)
        return None if life is None else life.peer

    def handle(self, event: MembershipEvent) -> list[MembershipEffect]:
        """What follows from one event."""
        match event:
            case Tick(now=now):
                self._excuse(now)
                return self._end_leases(now)
            case PeerUnreachable(peer=peer):
                return self._disconnect(peer)
            case KeyWithdrawn(instance=instance):
                return self._revoke(instance)
            case MessageReceived(now=now, peer=peer, message=message):
                return self._receive(message, peer, now)
            case _ as unreachable:
                assert_never(unreachable)

    def _receive(self, message: MembershipMessage, peer: Peer, now: float) -> list[MembershipEffect]:
        match message:
            case Heartbeat():
                return self._renew(message, peer, now)
            case Register():
                return self._register(message, peer, now)
            case Leaving(instance=instance, generation=generation):
                return self._leave(instance, generation)
            case _ as unreachable:
                assert_never(unreachable)

    def _register(self, register: Register, peer: Peer, now: float) -> list[MembershipEffect]:
        # A registration of the instance is one of: a repetition by a life already here, a life that cannot serve
        # in this mesh, a life that follows another, the first life.
        life = self._lives.get(register.instance)
        if life is not None and life.member.generation == register.generation:
            return self._register_again(life, register, peer, now)
        layout = self._layout or register.layout
        if (difference := incompatibility(layout, register.layout)) is not None:
            reason = (
                f"instance {register.instance!r} cannot serve in this mesh: {difference}; start it with the model "
                "and the KV settings of the mesh, or restart the gateway to change them"
            )
            return [Reply(peer, Rejected(reason=reason, fatal=True))]
        self._layout = layout
        lost: list[MembershipEffect] = []
        ousted = None
        if life is not None:
            lost = [self._lose(register.instance, LossReason.REPLACED)]
            ousted = (life.peer, life.member.generation) if life.peer != peer else None
        self._lives[register.instance] = _Life(register, peer, now, ousted)
        return [*lost, Reply(peer, self._welcome), MemberJoined(register)]

    def _register_again(self, life: _Life, register: Register, peer: Peer, now: float) -> list[MembershipEffect]:
        if register != life.member:
            reason = (
                f"generation {register.generation} of instance {register.instance!r} has registered before with "
                "other facts; draw a new generation"
            )
            return [Reply(peer, Rejected(reason=reason))]
        life.peer = peer
        life.renewed_at = now
        return [Reply(peer, self._welcome)]

    def _renew(self, heartbeat: Heartbeat, peer: Peer, now: float) -> list[MembershipEffect]:
        life = self._lives.get(heartbeat.instance)
        if life is None or life.member.generation != heartbeat.generation:
            return [Reply(peer, _rejection(heartbeat, peer, life))]
        # The same life may come over a new connection.
        life.peer = peer
        life.renewed_at = now
        report = LoadReported(heartbeat.instance, heartbeat.generation, heartbeat.load, heartbeat.prefixes)
        return [Reply(peer, self._ack), report]

    def _leave(self, instance: InstanceId, generation: Generation) -> list[MembershipEffect]:
        life = self._lives.get(instance)
        if life is None or life.member.generation != generation:
            return []
        return [self._lose(instance, LossReason.LEFT)]

    def _disconnect(self, peer: Peer) -> list[MembershipEffect]:
        # A hole in what was said to a life cannot be mended: it must join anew.
        unreachable = [name for name, life in self._lives.items() if life.peer == peer]
        return [self._lose(instance, LossReason.UNREACHABLE) for instance in unreachable]

    def _revoke(self, instance: InstanceId) -> list[MembershipEffect]:
        if (life := self._lives.get(instance)) is None:
            return []
        # Not for good: where its key was replaced, it comes back with the new one.
        rejected = Rejected(reason=f"the key of instance {instance!r} was revoked or replaced")
        return [Reply(life.peer, rejected), self._lose(instance, LossReason.REVOKED)]

    def _excuse(self, now: float) -> None:
        """The time by which a tick is late is not counted as silence: this process stood still (a paused machine), and
        the heartbeats of that time wait to be read.
        """
        last, self._ticked_at = self._ticked_at, now
        late_s = 0.0 if last is None else now - last - self._tick_s
        if late_s > 0:
            for life in self._lives.values():
                life.renewed_at = min(now, life.renewed_at + late_s)

    def _end_leases(self, now: float) -> list[MembershipEffect]:
        lease_s = self._welcome.lease_s
        silent = [name for name, life in self._lives.items() if now - life.renewed_at >= lease_s]
        return [self._lose(instance, LossReason.SILENT) for instance in silent]

    def _lose(self, instance: InstanceId, reason: LossReason) -> MemberLost:
        life = self._lives.pop(instance)
        return MemberLost(instance, life.member.generation, reason)


def _rejection(heartbeat: Heartbeat, peer: Peer, life: _Life | None) -> Rejected:
    if life is None:
        return Rejected(reason=f"instance {heartbeat.instance!r} is not a member (its lease may have ended); register")
    if life.ousted == (peer, heartbeat.generation):
        reason = (
            f"another process has joined as instance {heartbeat.instance!r}, and the newer one stays; "
            "give every instance its own id"
        )
        return Rejected(reason=reason, fatal=True)
    return Rejected(
        reason=f"generation {heartbeat.generation} of instance {heartbeat.instance!r} is not the one that joined "
        "last; register with a new one"
    )
