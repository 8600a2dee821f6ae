"""A plan as a system that can be simulated."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from common.config.types import GatewayConfig
from common.messages.control import Role
from services.planner.plan import Plan, Serving
from services.planner.report.plan_words import in_words
from services.planner.request import PlanRequest
from services.planner.trials.packing import Seat, seats
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.cluster.keys import InstanceKeys
from services.simulator.links import LinkSpec
from services.simulator.runs.system import System

POLICY: Mapping[Serving, Literal["capacity", "disagg", "cronus"]] = MappingProxyType(
    {Serving.AGGREGATED: "capacity", Serving.DISAGGREGATED: "disagg", Serving.CRONUS: "cronus"}
)
"""What mesh.yaml calls it."""


def deployed(plan: Plan, request: PlanRequest) -> System:
    """`plan` on the machines of `request`, with the gateway's settings of a mesh.yaml that leaves them out.

    Raises PlannerError where the machines cannot seat the instances.
    """
    taken = seats(plan, request.pools)
    cluster = Cluster(
        instances=tuple(map(_instance, taken)),
        layers=request.model.spec.layers,
        kv_bytes_per_token=request.model.token_bytes,
        link=_slowest(taken),
    )
    return System(
        name=in_words(plan),
        policy=POLICY[plan.serving],
        cluster=cluster,
        entries={seat.name: f"{seat.pool.name} {seat.option.strategy}" for seat in taken},
        prefill_slots=prefill_slots(plan),
    )


def prefill_slots(plan: Plan) -> int:
    """Requests at one P at a time: one more than its stages, so that none of them stands idle between two prompts."""
    stages = [group.option.strategy.pp for group in plan.groups if group.option.role is Role.PREFILL]
    return max(GatewayConfig().prefill_slots, 1 + max(stages, default=0))


def _instance(seat: Seat) -> SimulatedInstance:
    template, option = seat.pool.template, seat.option
    keys = InstanceKeys(
        id=seat.name,
        role=option.role,
        budget=template.budget,
        prefill_chunk=template.prefill_chunk,
        max_batch=template.max_batch if option.batch is None else option.batch,
        block_size=template.block_size,
    )
    return seat.pool.facts[option.strategy].instance(seat.name, keys, option.role, template.weight)


def _slowest(taken: Sequence[Seat]) -> LinkSpec:
    """The least of all instances in use: a cluster has one kind of link, one for each P.

    A P has its share of its machine's link, for its neighbours may send at the same time; a D gets from one P at a time
    what its machine's link can take.
    """
    links = [
        seat.pool.link_share(seat.option.strategy) if seat.option.role is Role.PREFILL else seat.pool.host_link
        for seat in taken
    ]
    return LinkSpec(min(link.bytes_per_s for link in links), max(link.latency_s for link in links))
