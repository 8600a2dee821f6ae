"""Small requests for plans: two kinds of machines that a person knows, and plans for them made by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from common.config.types import InstanceConfig
from common.ids import InstanceId
from common.messages.control import Role
from services.planner.plan import Group, Option, Plan, Serving
from services.planner.request import Limits, Objective, PlanRequest, Pool
from services.simulator.cluster.instance_facts import instance_facts
from services.simulator.cluster.keys import InstanceKeys
from services.simulator.cluster.served_model import ServedModel
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.models import find_model
from services.simulator.hardware.strategy import Strategy
from services.simulator.links import LinkSpec
from services.simulator.workload.requests import TracedRequest, Workload

MODEL = ServedModel(find_model("SmolLM2-135M"), "float16")
TP1, TP2, TP4 = Strategy(), Strategy(tp=2), Strategy(tp=4)


def pool(name: str, device: str = "A10", machines: int = 2, devices: int = 4, **changes: Any) -> Pool:
    keys = InstanceKeys(id=InstanceId("x"), role=Role.DECODE, device=device, max_batch=8, budget=64)
    facts = instance_facts(keys, MODEL, load_catalogue(), Path())
    template = InstanceConfig(id=InstanceId("x"), role=Role.DECODE, device="cuda", max_batch=8, budget=64)
    return msgspec.structs.replace(
        Pool(
            name=name,
            device=device,
            machines=machines,
            devices_per_machine=devices,
            device_price=2.0,
            # What more devices gain is of no interest here.
            facts=dict.fromkeys((TP1, TP2, TP4), facts),
            refused={},
            template=template,
            host_link=LinkSpec(12.5e9, 10e-6),
        ),
        **changes,
    )


def workload(requests: int = 60, prompt: int = 100, output: int = 10) -> Workload:
    return Workload("by hand", "a test", tuple(TracedRequest(0.0, prompt, output) for _ in range(requests)))


def request(*pools: Pool, **changes: Any) -> PlanRequest:
    return msgspec.structs.replace(
        PlanRequest(
            pools=pools or (pool("a10"), pool("l4", "L4")),
            model=MODEL,
            model_word="smollm2",
            workload=workload(),
            rate_rps=None,
            limits=Limits(),
            objective=Objective.THROUGHPUT,
        ),
        **changes,
    )


def group(pool_name: str, role: Role, count: int, strategy: Strategy = TP1, price: float = 2.0) -> Group:
    return Group(Option(pool_name, role, strategy, price * strategy.devices, 0.1, 0.1, 0.2), count)


def plan(serving: Serving, *groups: Group, rate_rps: float = 10.0) -> Plan:
    return Plan(serving, groups, rate_rps)


def aggregated(count: int = 3, **facts: Any) -> Plan:
    return plan(Serving.AGGREGATED, group("a10", Role.DECODE, count), **facts)


def pairs(serving: Serving = Serving.CRONUS, prefill: int = 1, decode: int = 2, **facts: Any) -> Plan:
    return plan(serving, group("a10", Role.PREFILL, prefill), group("l4", Role.DECODE, decode), **facts)


def names(instances: Sequence[Any]) -> list[str]:
    return [str(getattr(instance, "name", getattr(instance, "id", None))) for instance in instances]
