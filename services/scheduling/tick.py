"""The passing of time, as an event."""

import msgspec


class Tick(msgspec.Struct, frozen=True):
    """It is `now` (seconds of a monotonic clock). The shell sends one every fraction of a lease."""

    now: float
