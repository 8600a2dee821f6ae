"""Instances with known costs, as a policy sees them, and what the balancer makes of two of them."""

from collections.abc import Mapping

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.ids import Generation, InstanceId, RequestId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import LinkFigures, Load, Register, Role
from common.messages.sampling import SamplingParams
from services.scheduling.ledgers.work_ledger import Work
from services.scheduling.policies.balancer import Pair
from services.scheduling.policies.routing import InstanceView, MeshView
from services.scheduling.profiles.stage_times import (
    DecodeLoad,
    DecodeStage,
    PrefillLoad,
    PrefillStage,
    TransferStage,
)
from services.scheduling.request import RequestSpec

COSTS = InstanceCosts(
    prefill=PrefillCost(base=0.005, per_token=1e-4),
    mixed=MixedStepCost(base=0.01, per_token=5e-5, per_chunk_context=2e-7, per_decode_context=1e-7),
    decode=DecodeStepCost(base=0.008, per_sequence=2e-5, per_context=1e-7),
)
EVEN = InstanceCosts(
    prefill=PrefillCost(base=0.0, per_token=0.001),
    mixed=MixedStepCost(base=0.0, per_token=0.001, per_chunk_context=0.0, per_decode_context=0.0),
    decode=DecodeStepCost(base=0.1, per_sequence=0.0, per_context=0.0),
)
"""P and D take a millisecond per token, and nothing else costs anything."""
BLOCK = 16
BUDGET = 256
SLOTS = 64
LAYOUT = KVLayout(
    model="tiny",
    dtype=KVDType.FLOAT32,
    block_size=BLOCK,
    order=KVOrder.NHD,
    layers=Interval(0, 2),
    heads=Interval(0, 3),
    head_dim=8,
)
TOKEN_BYTES = 2 * 2 * 3 * 8 * 4  # K and V, layers, heads, head_dim, float32

Links = Mapping[tuple[InstanceId, InstanceId], LinkFigures]


def a_member(
    name: str,
    *,
    costs: InstanceCosts | None = COSTS,
    tokens: int = 100_000,
    max_batch: int = SLOTS,
    weight: float | None = None,
    budget: int | None = None,
) -> Register:
    """p… prefills, d… decodes; `tokens` is the most it holds, of one request and of all."""
    is_prefill = name.startswith("p")
    return Register(
        instance=InstanceId(name),
        role=Role.PREFILL if is_prefill else Role.DECODE,
        generation=Generation(1),
        endpoints=(),
        layout=LAYOUT,
        context_length=tokens,
        kv_capacity_tokens=tokens,
        max_batch=max_batch,
        budget=budget if is_prefill else budget or BUDGET,
        costs=costs,
        weight=weight,
    )


def a_prefill(
    name: str = "p0", *queued: int, member: Register | None = None, has_room: bool = True, cost_factor: float = 1.0
) -> InstanceView:
    """A P with so many prompts of so many tokens to compute."""
    return InstanceView(
        member=member or a_member(name),
        outstanding_requests=len(queued),
        outstanding_tokens=sum(queued),
        has_room=has_room,
        load=Load(cost_factor=cost_factor),
        pending_prompts=queued,
    )


def a_decode(
    name: str = "d0",
    load: DecodeLoad = DecodeLoad(),
    *,
    member: Register | None = None,
    has_room: bool = True,
    expected_tokens: int = 0,
    placed: int = 0,
    cost_factor: float = 1.0,
    work: Work = Work(),
) -> InstanceView:
    """A D under a load; `work` is told apart from it, and makes the instance busy."""
    return InstanceView(
        member=member or a_member(name),
        outstanding_requests=max(load.decodes + load.prompts, work.mix.sequences),
        outstanding_tokens=expected_tokens,
        has_room=has_room,
        load=Load(cost_factor=cost_factor),
        placed=placed,
        decode_load=load,
        expected_tokens=expected_tokens,
        work=work,
    )


def a_mesh(*views: InstanceView, links: Links | None = None, expected_output: float | None = None) -> MeshView:
    """By role."""
    return MeshView(
        prefills=tuple(view for view in views if view.member.role is Role.PREFILL),
        decodes=tuple(view for view in views if view.member.role is Role.DECODE),
        links=links or {},
        expected_output=expected_output,
    )


def a_request(
    prompt: int = 1000,
    max_tokens: int = 10,
    *,
    name: str = "r",
    choices: int = 1,
    split: str | int | float | None = None,
    user: str = "",
) -> RequestSpec:
    """Its deadline is far away."""
    return RequestSpec(
        request=RequestId(name),
        prompt=tuple(range(prompt)),
        sampling=SamplingParams(),
        max_tokens=max_tokens,
        deadline_at=1e9,
        choices=choices,
        split=split,
        user=user,
    )


def a_pair(
    costs: InstanceCosts = COSTS,
    *,
    prefill: PrefillStage | None = None,
    queued: tuple[int, ...] = (),
    transfer: TransferStage = TransferStage(),
    load: DecodeLoad = DecodeLoad(),
    block_size: int = BLOCK,
    budget: int = BUDGET,
    slots: int = SLOTS,
) -> Pair:
    """A P and a D; both by `costs` unless P has a stage of its own."""
    stage = prefill or PrefillStage(costs.prefill)
    decode = DecodeStage(costs.mixed, costs.decode, budget, slots)
    return Pair(stage.under(PrefillLoad(queued)), transfer, decode.under(load), block_size)
