"""Meshes of any size with instances of unlike speed in some state of load, as a policy is shown them."""

import random

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.ids import Generation, InstanceId, RequestId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import LinkFigures, Load, Register, Role
from common.messages.sampling import SamplingParams
from services.scheduling.policies.routing import InstanceView, MeshView
from services.scheduling.profiles.stage_times import DecodeLoad
from services.scheduling.request import RequestSpec

_LAYOUT = KVLayout(
    model="bench",
    dtype=KVDType.BFLOAT16,
    block_size=16,
    order=KVOrder.NHD,
    layers=Interval(0, 32),
    heads=Interval(0, 8),
    head_dim=128,
)
_COSTS = InstanceCosts(
    prefill=PrefillCost(base=0.006, per_token=6e-5),
    mixed=MixedStepCost(base=0.012, per_token=5e-5, per_chunk_context=3e-7, per_decode_context=1.2e-7),
    decode=DecodeStepCost(base=0.011, per_sequence=5e-5, per_context=1.2e-7),
)
"""Made up; about those of a model of 8 billion parameters on a device of some 200 TFLOP/s."""
_BUDGET, _MAX_BATCH = 512, 256
_SLOWDOWNS = (1.0, 1.5, 2.5)
_PROMPT_TOKENS, _OUTPUT_TOKENS = (64, 8000), (16, 600)


def a_request(draw: random.Random) -> RequestSpec:
    """A request of some length."""
    return RequestSpec(
        request=RequestId("bench"),
        prompt=tuple(range(draw.randint(*_PROMPT_TOKENS))),
        sampling=SamplingParams(),
        max_tokens=draw.randint(*_OUTPUT_TOKENS),
        deadline_at=60.0,
    )


def a_mesh(prefills: int, decodes: int, draw: random.Random) -> MeshView:
    """So many instances that all have room, and a measured link for each pair."""
    sources = [_prefill(number, draw) for number in range(prefills)]
    targets = [_decode(number, draw) for number in range(decodes)]
    links = {
        (source.member.instance, target.member.instance): LinkFigures("tcp", draw.choice([1.2e9, 12e9]), 2e-4)
        for source in sources
        for target in targets
    }
    return MeshView(tuple(sources), tuple(targets), links, expected_output=250.0)


def _prefill(number: int, draw: random.Random) -> InstanceView:
    queued = tuple([draw.randint(*_PROMPT_TOKENS) for _ in range(draw.randint(0, 1))])
    return InstanceView(
        member=_member(f"p{number}", Role.PREFILL, draw),
        outstanding_requests=len(queued),
        outstanding_tokens=sum(queued),
        has_room=True,
        load=Load(cost_factor=draw.uniform(0.8, 1.3)),
        pending_prompts=queued,
    )


def _decode(number: int, draw: random.Random) -> InstanceView:
    decodes, prompts = draw.randint(0, _MAX_BATCH // 2), draw.randint(0, 3)
    load = DecodeLoad(
        decodes=decodes,
        decode_context=decodes * draw.randint(100, 2000),
        prefill_tokens=sum([draw.randint(*_PROMPT_TOKENS) for _ in range(prompts)]),
        prompts=prompts,
    )
    return InstanceView(
        member=_member(f"d{number}", Role.DECODE, draw),
        outstanding_requests=decodes + prompts,
        outstanding_tokens=load.decode_context + load.prefill_tokens,
        has_room=True,
        load=Load(cost_factor=draw.uniform(0.8, 1.3)),
        decode_load=load,
        expected_tokens=load.decode_context + load.prefill_tokens,
    )


def _member(name: str, role: Role, draw: random.Random) -> Register:
    return Register(
        instance=InstanceId(name),
        role=role,
        generation=Generation(1),
        endpoints=(),
        layout=_LAYOUT,
        context_length=1 << 17,
        kv_capacity_tokens=1 << 20,
        max_batch=_MAX_BATCH,
        budget=None if role is Role.PREFILL else _BUDGET,
        costs=_COSTS.scaled(draw.choice(_SLOWDOWNS)),
    )
