"""Who is in the mesh: what membership says and every other decision hears."""

from enum import StrEnum

import msgspec

from common.ids import Generation, InstanceId
from common.kv.prefix import PrefixNews
from common.messages.control import Load, Register

Member = Register
"""A member is described by what it registered; nothing is added and nothing lost."""


class LossReason(StrEnum):
    """Why one life of an instance is over."""

    LEFT = "left"
    SILENT = "silent"
    """No heartbeat for a whole lease."""
    UNREACHABLE = "unreachable"
    """A message to it could not be delivered."""
    REPLACED = "replaced"
    """Another life of the same instance joined."""
    REVOKED = "revoked"
    """The key that it joined with is not allowed any more."""


class MemberJoined(msgspec.Struct, frozen=True):
    """A new life of an instance may be used. An earlier life has been lost before."""

    member: Member


class MemberLost(msgspec.Struct, frozen=True):
    """One life of an instance is over: whatever it held is gone, and nothing may be sent to it."""

    instance: InstanceId
    generation: Generation
    reason: LossReason


class LoadReported(msgspec.Struct, frozen=True):
    """What a member held when it sent its last heartbeat."""

    instance: InstanceId
    generation: Generation
    load: Load
    prefixes: PrefixNews | None = None
    """What its KV blocks hold, as far as that has changed."""
