"""Small simulations with step times that a person can add up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.messages.control import Role
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import PlacementPolicy
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.engine.timing import DecodeLine, StepTimer
from services.simulator.links import LinkSpec
from services.simulator.simulation import Simulation
from services.simulator.workers import SimulatedPrefill
from services.simulator.workload.requests import TracedRequest, Workload

LAYERS = 4
TOKEN_BYTES = 16
"""4 layers of K and V, one element of two bytes each: 4 bytes per token and layer."""


@dataclass(frozen=True)
class LinearTimer(StepTimer):
    """base + per_token · (tokens of the step) + per_context · (contexts of its decodes)."""

    base: float = 0.0
    per_token: float = 0.0
    per_context: float = 0.0

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        tokens = decodes + sum(computed for computed, _ in chunks)
        return self.base + self.per_token * tokens + self.per_context * decode_context

    def decode_line(self, decodes: int) -> DecodeLine:
        return DecodeLine(self.base + self.per_token * decodes, self.per_context)


def prefill(name: str, timer: StepTimer, **facts: Any) -> SimulatedInstance:
    return SimulatedInstance(name, Role.PREFILL, timer, **({"kv_tokens": 1024, "block_size": 4} | facts))


def decode(name: str, timer: StepTimer, **facts: Any) -> SimulatedInstance:
    return SimulatedInstance(
        name, Role.DECODE, timer, **({"kv_tokens": 1024, "block_size": 4, "budget": 8, "max_batch": 4} | facts)
    )


def cluster(*instances: SimulatedInstance, bytes_per_s: float = 1e9, latency_s: float = 0.0) -> Cluster:
    return Cluster(instances, LAYERS, TOKEN_BYTES, LinkSpec(bytes_per_s, latency_s))


def workload(*requests: tuple[float, int, int]) -> Workload:
    """Requests as (arrival, prompt tokens, output tokens)."""
    return Workload("by hand", "a test", tuple(TracedRequest(*request) for request in requests))


def simulation(
    instances: Cluster,
    split: int | PlacementPolicy,
    *requests: tuple[float, int, int],
    prefill_slots: int = 2,
    decode_batches: int = 2,
) -> Simulation:
    """A run that has ended; every request is split at `split` unless that is a policy."""
    policy = split if isinstance(split, PlacementPolicy) else FixedPolicy(split)
    made = Simulation(
        instances,
        policy,
        workload(*requests),
        prefill_slots=prefill_slots,
        decode_batches=decode_batches,
        checked=True,
    )
    made.run()
    return made


def placed(run: Simulation) -> list[float | None]:
    return [record.placed_at for record in run.records]


def handed_over(run: Simulation) -> list[float | None]:
    return [record.handed_over_at for record in run.records]


def first_tokens(run: Simulation) -> list[float | None]:
    return [record.first_token_at for record in run.records]


def finished(run: Simulation) -> list[float | None]:
    return [record.finished_at for record in run.records]


def link_busy_s(run: Simulation, name: str) -> float:
    worker = run.workers[name]
    assert isinstance(worker, SimulatedPrefill)
    return worker.link.busy_s
