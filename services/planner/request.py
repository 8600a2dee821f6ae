"""What a deployment is planned for: machines, model, workload, limits, and what is wanted most."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from common.config.types import InstanceConfig
from services.simulator.cluster.instance_facts import InstanceFacts
from services.simulator.cluster.served_model import ServedModel
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec
from services.simulator.workload.requests import Workload


class Objective(StrEnum):
    """What the best plan is best in."""

    THROUGHPUT = "throughput"
    """Requests per second, whatever the latencies."""
    GOODPUT = "goodput"
    """Requests per second within the limits."""
    PRICE = "price"
    """Least price per hour that serves the rate within the limits."""


class Limits(msgspec.Struct, frozen=True):
    """What users may be made to wait, in seconds; None: any time."""

    ttft_p99_s: float | None = None
    tpot_p99_s: float | None = None


class Misfit(msgspec.Struct, frozen=True):
    """Why a strategy is not possible on a pool's machines."""

    reason: str
    short_bytes: int | None = None
    """Memory that each device lacks for the longest request of the workload; None: memory is not the reason."""


class Pool(msgspec.Struct, frozen=True):
    """Machines that are alike."""

    name: str
    device: str
    """In words."""
    machines: int
    devices_per_machine: int
    device_price: float | None
    """Per hour and device; None: not known."""
    facts: Mapping[Strategy, InstanceFacts]
    """Of every strategy whose instance fits."""
    refused: Mapping[Strategy, Misfit]
    """Of the other strategies: why not, and by how much."""
    template: InstanceConfig
    """What mesh.yaml says of each of its instances, but for id, role, host and strategy. `device` has no number, and
    `kv_memory` is right where the plan file gives one: else it is `kv_bytes`. `profile` is the one of TP1, if measured.
    """
    host_link: LinkSpec
    """From a machine to the others, in one direction; all its devices share it."""

    @property
    def devices(self) -> int:
        """Over all machines."""
        return self.machines * self.devices_per_machine

    def link_share(self, strategy: Strategy) -> LinkSpec:
        """What an instance has of the host link when others like it fill the machine."""
        share = strategy.devices / self.devices_per_machine
        return LinkSpec(self.host_link.bytes_per_s * share, self.host_link.latency_s)

    def token_bytes(self, model: ServedModel) -> int:
        """Bytes of KV of one token in the dtype that this pool computes in."""
        return model.spec.kv_bytes_per_token(self.template.dtype or model.dtype)

    def kv_bytes(self, strategy: Strategy, model: ServedModel) -> int:
        """Of one instance, over all its devices."""
        return self.facts[strategy].kv_tokens * self.token_bytes(model)


class PlanRequest(msgspec.Struct, frozen=True):
    """A checked plan file."""

    pools: tuple[Pool, ...]
    model: ServedModel
    model_word: str
    """What mesh.yaml calls the model."""
    workload: Workload
    rate_rps: float | None
    """Wanted; None: as much as there is."""
    limits: Limits
    objective: Objective
    budget: float | None = None
    """Most price per hour; None: all machines."""
