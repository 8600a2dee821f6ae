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

    def transfer(self, num_bytes: int, first_at: float, last_at: float, last_bytes: int) -> float:
        """When `num_bytes` have arrived, sent in pieces of which the first may go at `first_at`, the last at `last_at`.

        The wire carries one piece after another, each once it is ready and the one before is through.  So the end is
        the latest, over the pieces, of "ready, then this and all later ones without a pause".  Where they become ready
        evenly, or ever more slowly (later chunks have longer contexts), the first or the last piece decides; with a
        last chunk shorter than the others, to within one piece.

        A transfer has the link to itself from its first piece to its last, the pauses between them included: what
        becomes ready meanwhile waits.
        """
        seconds = num_bytes / self.spec.bytes_per_s
        begins = max(self._free_at, first_at)
        ends = max(begins + seconds, last_at + last_bytes / self.spec.bytes_per_s)
        self._free_at = ends
        self.busy_s += seconds
        return ends + self.spec.latency_s
