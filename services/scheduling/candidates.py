"""The stages of the pairs that a policy may choose from, as the balancer wants them."""

from common.costs.models import InstanceCosts
from common.kv.wire import wire_token_bytes
from services.scheduling.balancer import Pair
from services.scheduling.routing import InstanceView, MeshView
from services.scheduling.stage_times import DecodeStage, PrefillLoad, PrefillStage, TransferStage

UNBOUNDED_BUDGET = 1 << 30


def present_costs(view: InstanceView) -> InstanceCosts | None:
    """The registered costs, corrected by how long its steps take lately; None where it registered none."""
    costs = view.member.costs
    if costs is None or view.load is None or view.load.cost_factor == 1.0:
        return costs
    return costs.scaled(view.load.cost_factor)


def pair_of(prefill: InstanceView, decode: InstanceView, mesh: MeshView) -> Pair:
    """The stages of two instances that have registered costs."""
    link = mesh.links.get((prefill.member.instance, decode.member.instance))
    cost = present_costs(prefill)
    assert cost is not None
    return Pair(
        prefill=PrefillStage(cost.prefill, prefill.member.budget),
        transfer=TransferStage(
            bytes_per_token=wire_token_bytes(prefill.member.layout, decode.member.layout),
            bytes_per_s=None if link is None else link.bytes_per_s,
            latency_s=0.0 if link is None else link.round_trip_s,
        ),
        decode=decode_stage(decode),
        block_size=decode.member.layout.block_size,
    )


def decode_stage(decode: InstanceView) -> DecodeStage:
    """The stage of a decode instance that has registered costs."""
    costs = present_costs(decode)
    assert costs is not None
    budget = decode.member.budget or UNBOUNDED_BUDGET
    return DecodeStage(costs.mixed, costs.decode, budget, decode.member.max_batch)


def prefill_load(prefill: InstanceView) -> PrefillLoad:
    """What a P has to compute before something new."""
    return PrefillLoad(prefill.pending_prompts)
