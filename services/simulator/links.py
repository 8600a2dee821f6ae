"""A simulated link: bandwidth, latency, and a queue in order of asking."""

import msgspec


class LinkSpec(msgspec.Struct, frozen=True):
    """One direction of a link. 100 Gb/s is LinkSpec(12.5e9, 10e-6)."""

    bytes_per_s: float
    latency_s: float = 10e-6


class SimulatedLink:
    """One link, first come, first served. A transfer occupies it for bytes / bandwidth; its latency occupies nobody."""

    def __init__(self, spec: LinkSpec) -> None:
        self.spec = spec
        self.busy_s = 0.0
        """Seconds in which it was occupied: never more than have passed."""
        self._free_at = 0.0

    def transfer(self, num_bytes: int, ready_from: float, ready_at: float, last_piece: int) -> float:
        """When `num_bytes` have arrived that become ready evenly between `ready_from` and `ready_at`.

        The last `last_piece` bytes are ready at `ready_at`: a transfer that keeps up with the computing ends so much
        after it.  The link is then taken to be busy for the whole of num_bytes / bandwidth without a break.
        """
        seconds = num_bytes / self.spec.bytes_per_s
        begins = max(self._free_at, ready_from)
        ends = max(begins + seconds, ready_at + last_piece / self.spec.bytes_per_s)
        self._free_at = ends
        self.busy_s += seconds
        return ends + self.spec.latency_s
