"""How many requests show what a system does in its steady state. Pure."""

from math import ceil
from typing import Final

from common.messages.control import Role
from services.simulator.cluster.cluster import Cluster
from services.simulator.workload.requests import Workload
from services.simulator.workload.statistics import statistics

_LONG_ANSWERS: Final = 3
"""How many of the longest answers, one after the other, a run takes."""
_LEAST: Final = 200


def requests_for_steady(workload: Workload, cluster: Cluster) -> int:
    """How many requests, all there at 0 s, show it by the first tokens of their second half.

    An answer of mean length stays while all places are given once.  Long ones stay longer, and only when they have
    gathered in the places, and begin to leave, does the rate stay: after the P99 of lengths over the mean, times.
    """
    found = statistics(workload)
    resident = found.prompt.mean + found.output.mean / 2
    decoding = [instance for instance in cluster.instances if instance.role is Role.DECODE]
    places = sum(min(instance.max_batch, instance.kv_tokens / resident) for instance in decoding)
    return max(_LEAST, ceil(_LONG_ANSWERS * places * found.output.p99 / found.output.mean))
