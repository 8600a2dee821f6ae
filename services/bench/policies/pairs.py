"""The pairs of devices of the Cronus paper as clusters, one for each system that is compared on them."""

from enum import StrEnum
from typing import Final

import msgspec

from common.config.types import DType
from common.messages.control import Role
from services.scheduling.profiles.profile import Profile
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.memory import kv_capacity_tokens
from services.simulator.hardware.models import ModelSpec, find_model
from services.simulator.hardware.roofline import RooflineTimer
from services.simulator.hardware.spec_profile import spec_profile
from services.simulator.links import LinkSpec
from services.simulator.pipeline.split import DevicePair, filled_step, pipelined_instance, split_layers
from services.simulator.workload.requests import Workload

DTYPE: Final[DType] = "float16"
BUDGET = 512
"""Tokens per step, as vLLM 0.6 had it by default for chunked prefill."""
MAX_BATCH = 256
LINK = LinkSpec(100e9 / 8)


class PairSystem(StrEnum):
    """What is compared on a pair."""

    CRONUS = "cronus"
    DP_UNTUNED = "dp_untuned"
    DP_TUNED = "dp_tuned"
    PP = "pp"
    LOW_HIGH = "low_high"
    HIGH_LOW = "high_low"


class Tuning(msgspec.Struct, frozen=True):
    """The settings of the rivals that a search has found."""

    dp_weight: float = 0.75
    """The fast device's share of the requests."""
    pp_budget: int = BUDGET
    """Tokens in the step of one micro-batch."""


class Pair(msgspec.Struct, frozen=True):
    """A fast and a slow device that serve one model."""

    high: DeviceSpec
    low: DeviceSpec
    model: ModelSpec
    untuned_weight: float
    """The fast one's share under an untuned dp: three to one beside an A10, two to one beside an A30."""
    high_profile: Profile
    low_profile: Profile

    @property
    def name(self) -> str:
        """As in the rows."""
        return f"{self.high.name} + {self.low.name}"

    def cluster(self, *instances: SimulatedInstance, link: LinkSpec = LINK) -> Cluster:
        """Instances that serve the pair's model."""
        return Cluster(instances, self.model.layers, self.model.kv_bytes_per_token(DTYPE), link)

    def fast(self, role: Role, weight: float | None = None) -> SimulatedInstance:
        """The fast device in a role."""
        return instance("high", role, self.high, self.model, self.high_profile, weight=weight)

    def slow(self, role: Role, weight: float | None = None, chunk: int | None = None) -> SimulatedInstance:
        """The slow device in a role; `chunk` for a P that computes prompts in chunks."""
        return instance("low", role, self.low, self.model, self.low_profile, weight=weight, chunk=chunk)

    def of(self, system: PairSystem, tuning: Tuning, workload: Workload) -> Cluster:
        """The cluster of a system; a pipeline's layers are split for the lengths of `workload`."""
        match system:
            case PairSystem.CRONUS | PairSystem.LOW_HIGH:
                return self.cluster(self.fast(Role.DECODE), self.slow(Role.PREFILL))
            case PairSystem.HIGH_LOW:
                return self.cluster(self.fast(Role.PREFILL), self.slow(Role.DECODE))
            case PairSystem.DP_TUNED | PairSystem.DP_UNTUNED:
                share = tuning.dp_weight if system is PairSystem.DP_TUNED else self.untuned_weight
                return self.cluster(self.fast(Role.DECODE, share), self.slow(Role.DECODE, 1.0 - share))
            case PairSystem.PP:
                return self.cluster(self.pipeline(tuning.pp_budget, workload))

    def pipeline(self, budget: int, workload: Workload) -> SimulatedInstance:
        """One instance over both devices, its layers split for the workload's mean lengths.

        Each of its two micro-batches may have as many sequences as another system's decode instance.
        """
        count = len(workload.requests)
        prompt = sum(request.prompt_tokens for request in workload.requests) / count
        output = sum(request.output_tokens for request in workload.requests) / count
        devices = DevicePair(self.high, self.low)
        split = split_layers(devices, self.model, DTYPE, filled_step(budget, prompt, output))
        return pipelined_instance(
            "both", devices, self.model, DTYPE, split, LINK, budget=budget, max_batch=2 * MAX_BATCH
        )


def paper_pairs(catalogue: Catalogue) -> tuple[Pair, ...]:
    """A100 80 GB beside an A10 and beside an A30, with LLaMA3-8B and with Qwen2-7B."""
    return tuple(
        make_pair(catalogue, "A100 80GB SXM", low, model, untuned_weight)
        for low, untuned_weight in (("A10", 3 / 4), ("A30", 2 / 3))
        for model in ("LLaMA3-8B", "Qwen2-7B")
    )


def make_pair(catalogue: Catalogue, high: str, low: str, model_name: str, untuned_weight: float) -> Pair:
    """A pair of the catalogue's devices. Raises ConfigError."""
    fast, slow, model = catalogue.device(high), catalogue.device(low), find_model(model_name)
    profiles = [spec_profile(device, model, DTYPE, BUDGET, max_batch=MAX_BATCH) for device in (fast, slow)]
    return Pair(fast, slow, model, untuned_weight, profiles[0], profiles[1])


def instance(
    name: str,
    role: Role,
    device: DeviceSpec,
    model: ModelSpec,
    profile: Profile,
    *,
    weight: float | None = None,
    chunk: int | None = None,
) -> SimulatedInstance:
    """A device in a role: the roofline is the truth, the fitted coefficients are what policies see."""
    return SimulatedInstance(
        name=name,
        role=role,
        timer=RooflineTimer(device, model, DTYPE),
        kv_tokens=kv_capacity_tokens(device, model, DTYPE),
        costs=profile.costs,
        budget=BUDGET if role is Role.DECODE else chunk,
        max_batch=MAX_BATCH,
        weight=weight,
    )
