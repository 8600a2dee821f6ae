"""The requests that a plan is tried with: how many are enough, and when they come. Pure."""

from math import ceil
from typing import Final

import msgspec

from common.messages.control import Role
from services.planner.request import Limits
from services.simulator.cluster.cluster import Cluster
from services.simulator.runs.sweep import arriving_at
from services.simulator.workload.arrivals import recorded_at
from services.simulator.workload.requests import Workload
from services.simulator.workload.statistics import statistics

PER_INSTANCE: Final = 40
"""Least requests for each instance, so that none is measured by a few."""
_NEARLY: Final = 0.9
"""Of the wanted requests: as good as all."""
_FILLS: Final = 4
"""How many times over the requests fill the places that they can have at once; of which the first is the filling."""


class Trial(msgspec.Struct, frozen=True):
    """The requests of one plan's simulations."""

    workload: Workload
    wanted: int
    """How many would have been enough."""

    @property
    def is_enough(self) -> bool:
        """Whether a plan gets to its steady state: else latencies, and rates as well, are only a hint."""
        return len(self.workload.requests) >= _NEARLY * self.wanted


def trial_of(workload: Workload, cluster: Cluster, limits: Limits, rate_rps: float, most: int) -> Trial:
    """`workload` cut, or repeated, to as many requests as show what `cluster` does at `rate_rps`, and `most` at most.

    A plan is in its steady state when as many requests are there as it serves at once.  That is never more than the
    sequences that its decode instances have room for; and, by Little's law, at a rate within limits it is no more than
    rate x (TTFT + output tokens x TPOT).
    """
    found = statistics(workload)
    resident = found.prompt.mean + found.output.mean / 2
    decoding = [instance for instance in cluster.instances if instance.role is Role.DECODE]
    at_once = sum(min(instance.max_batch, instance.kv_tokens / resident) for instance in decoding)
    if limits.ttft_p99_s is not None and limits.tpot_p99_s is not None:
        longest_s = limits.ttft_p99_s + found.output.mean * limits.tpot_p99_s
        at_once = min(at_once, rate_rps * longest_s)
    wanted = max(PER_INSTANCE * len(cluster.instances), ceil(_FILLS * at_once))
    return Trial(resized(workload, min(wanted, most)), wanted)


def resized(workload: Workload, requests: int) -> Workload:
    """Its first so many requests; repeated as a whole, with its arrivals, where there are too few."""
    available = workload.requests
    found = statistics(workload)
    # The next round begins one mean gap after the last arrival of this.
    period_s = found.span_s + (1 / found.requests_per_s if found.requests_per_s else 0.0)
    chosen = tuple(
        msgspec.structs.replace(each, arrival_s=each.arrival_s + round_ * period_s)
        for round_ in range(ceil(requests / len(available)))
        for each in available
    )[:requests]
    return msgspec.structs.replace(workload, requests=chosen)


def coming_at(workload: Workload, rate_rps: float, seed: int) -> Workload:
    """The workload's own pattern, or a Poisson process where it has none, stretched to exactly this mean rate.

    A few hundred draws may come a fifth faster than their process does, which would be taken for the plan's doing.
    """
    own = statistics(workload).requests_per_s is not None
    pattern = workload if own else arriving_at(workload, rate_rps, seed)
    if statistics(pattern).requests_per_s is None:
        return pattern  # a single request has no rate
    how = f"{workload.arrivals} (pattern)" if own else f"Poisson, seed {seed}"
    arrivals = f"{how}, {rate_rps:g} requests/s"
    return msgspec.structs.replace(recorded_at(pattern, rate_rps), arrivals=arrivals)
