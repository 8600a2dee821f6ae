"""An instance whose steps a person can add up, and requests for plans of such instances."""

from typing import Any

import msgspec

from common.config.types import InstanceConfig
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.ids import InstanceId
from common.messages.control import Role
from services.planner.closed_forms.lengths import Lengths, lengths_of
from services.planner.closed_forms.rates import Instance
from services.planner.plan import Serving
from services.planner.request import Limits, Objective, PlanRequest, Pool
from services.scheduling.profiles.profile import Origin
from services.simulator.cluster.instance_facts import InstanceFacts
from services.simulator.cluster.served_model import ServedModel
from services.simulator.hardware.fitted import FittedTimer
from services.simulator.hardware.models import find_model
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec
from services.simulator.workload.requests import TracedRequest, Workload

MODEL = ServedModel(find_model("LLaMA3-8B"), "float16")
TOKEN_BYTES = 131_072
COSTS = InstanceCosts(
    prefill=PrefillCost(base=0.01, per_token=1e-4),
    mixed=MixedStepCost(base=0.02, per_token=1e-4, per_chunk_context=1e-6, per_decode_context=2e-6),
    decode=DecodeStepCost(base=0.02, per_sequence=1e-4, per_context=2e-6),
)
ENDLESS = LinkSpec(1e18, 0.0)


def facts(costs: InstanceCosts = COSTS, kv_tokens: int = 22_000) -> InstanceFacts:
    return InstanceFacts(
        timers={role: FittedTimer(costs, role) for role in Role},
        costs=costs,
        throughput_costs=costs,
        kv_tokens=kv_tokens,
        device="a device",
        origin=Origin.MEASURED,
        worst_fit=0.0,
    )


def engine(**keys: Any) -> InstanceConfig:
    sizes = {"budget": 512, "max_batch": 256, "block_size": 1} | keys
    return InstanceConfig(id=InstanceId("x"), role=Role.DECODE, **sizes)


def workload(*requests: tuple[int, int]) -> Workload:
    """Of (prompt, output) tokens."""
    return Workload("by hand", "a test", tuple(TracedRequest(0.0, *request) for request in requests))


def alike(prompt: int = 1000, output: int = 200) -> Lengths:
    return lengths_of(workload((prompt, output)))


def instance(
    lengths: Lengths | None = None, link: LinkSpec = ENDLESS, kv_tokens: int = 22_000, **keys: Any
) -> Instance:
    return Instance(
        facts=facts(kv_tokens=kv_tokens),
        engine=engine(**keys),
        lengths=lengths or alike(),
        token_bytes=TOKEN_BYTES,
        link_bytes_per_s=link.bytes_per_s,
        link_latency_s=link.latency_s,
        layers=32,
    )


def pool(name: str = "x", **changes: Any) -> Pool:
    made = Pool(
        name=name,
        device="a device",
        machines=1,
        devices_per_machine=1,
        device_price=None,
        facts={Strategy(): facts()},
        refused={},
        template=engine(),
        host_link=ENDLESS,
    )
    return msgspec.structs.replace(made, **changes)


def request(*pools: Pool, **changes: Any) -> PlanRequest:
    made = PlanRequest(
        pools=pools or (pool(),),
        model=MODEL,
        model_word="llama",
        workload=workload((1000, 200)),
        rate_rps=None,
        limits=Limits(),
        objective=Objective.THROUGHPUT,
    )
    return msgspec.structs.replace(made, **changes)


def seconds(options: Any) -> dict[tuple[Serving, str, Role], tuple[float, float, float]]:
    """Of each option: prefill, decode and whole."""
    return {
        (each.serving, each.option.pool, each.option.role): (
            each.option.prefill_s,
            each.option.decode_s,
            each.option.whole_s,
        )
        for each in options.assessed
    }
