"""What the probes of a gateway are answered."""

import msgspec
from msgspec import UNSET, UnsetType


class Health(msgspec.Struct, frozen=True):
    """`status` is alive, ready or "not ready"; the last has a reason, in words for an operator."""

    status: str
    reason: str | UnsetType = UNSET
