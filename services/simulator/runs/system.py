"""A policy on a cluster: what is simulated and compared with others."""

from collections.abc import Callable, Mapping

import msgspec

from common.config.types import Split
from common.messages.control import Role
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.capacity import CapacityPolicy, CapacitySettings
from services.scheduling.policies.cronus import CronusPolicy, CronusSettings
from services.scheduling.policies.registry import load_policy
from services.scheduling.policies.routing import PlacementPolicy
from services.simulator.cluster.cluster import Cluster
from services.simulator.engine.events import SimulationError
from services.simulator.runs.report import Report
from services.simulator.simulate import simulate
from services.simulator.workload.requests import Workload


class System(msgspec.Struct, frozen=True):
    """One thing to simulate, under a name."""

    name: str
    policy: str
    cluster: Cluster
    entries: Mapping[str, str]
    """By name of an instance the entry that it is one of: instances of one entry are alike and have one weight."""
    split: Split = "full"
    balance: Balance = Balance.FINISH
    prefill_slots: int = 2
    decode_batches: int = 2
    max_tokens: int | None = None
    """What requests say that their answers may have at most; None: just how long each is."""
    output_lengths: str = "quantile"
    """How the lengths of answers are predicted: oracle, or as in mesh.yaml."""
    capacity: CapacitySettings = CapacitySettings()
    """Of the policy of that name."""
    tunes_split: bool = False
    tunes_weights: bool = False
    """Whether the split, or the weights, are still to be found: `tuned` in services.simulator.runs.sweep does that."""

    def placement_policy(self) -> PlacementPolicy:
        """A fresh one."""
        if self.policy == "cronus":
            return CronusPolicy(CronusSettings(balance=self.balance))
        if self.policy == "capacity":
            return CapacityPolicy(self.capacity)
        return load_policy(self.policy, self.split)

    def entry_sizes(self) -> dict[str, int]:
        """The entries whose instances serve, in order, with the number of these."""
        sizes: dict[str, int] = {}
        for instance in self.cluster.instances:
            if instance.role is Role.DECODE:
                entry = self.entries[instance.name]
                sizes[entry] = sizes.get(entry, 0) + 1
        return sizes

    def with_weights(self, weights: Mapping[str, float]) -> "System":
        """The same with a weight for each instance, given by entry."""
        instances = tuple(
            msgspec.structs.replace(instance, weight=weights[self.entries[instance.name]])
            for instance in self.cluster.instances
        )
        cluster = msgspec.structs.replace(self.cluster, instances=instances)
        return msgspec.structs.replace(self, cluster=cluster, tunes_weights=False)

    def with_split(self, split: Split) -> "System":
        """The same with another split."""
        return msgspec.structs.replace(self, split=split, tunes_split=False)


def serve(system: System, workload: Workload, on_progress: Callable[[float], None] | None = None) -> Report:
    """Simulate `system` under `workload`. Raises SimulationError, which names the system."""
    try:
        return simulate(
            system.cluster,
            workload,
            system.placement_policy(),
            policy_name=system.name,
            prefill_slots=system.prefill_slots,
            decode_batches=system.decode_batches,
            max_tokens=system.max_tokens,
            output_lengths=system.output_lengths,
            on_progress=on_progress,
        )
    except SimulationError as error:
        raise SimulationError(f"system {system.name!r}: {error}") from error
