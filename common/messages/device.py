"""What an instance runs on and computes in, for people and for profiles."""

import msgspec


class DeviceFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Facts that explain an instance's step times; none of them decides anything in the mesh."""

    name: str = ""
    """The processor's or accelerator's name, in words."""
    dtype: str = ""
    """What the model computes in."""
    threads: int | None = None
    slowdown: float = 1.0
    """Above 1: each step is stretched to so many times its length, an emulation."""
    tp: int = 1
    pp: int = 1
