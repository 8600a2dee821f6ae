"""A life cycle with members, and the events of its tests in short."""

from common.errors import Failure, FailureKind
from common.ids import Generation, InstanceId, RequestId, TransferId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.kv.ticket import Ticket
from common.messages.control import (
    Abort,
    EmittedTokens,
    FinishReason,
    JobFailed,
    KVLanded,
    PrefillReleased,
    Register,
    Role,
    TokensEmitted,
)
from common.messages.sampling import SamplingParams
from services.scheduling.lifecycle.events import (
    Arrived,
    Fail,
    LifecycleEffect,
    Place,
    Send,
)
from services.scheduling.lifecycle.lifecycle import Lifecycle, Limits
from services.scheduling.membership.members import LossReason, MemberJoined, MemberLost
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.request import RequestSpec

LAYOUT = KVLayout(
    model="tiny",
    dtype=KVDType.FLOAT32,
    block_size=16,
    order=KVOrder.NHD,
    layers=Interval(0, 2),
    heads=Interval(0, 3),
    head_dim=8,
)
P0, P1, D0, D1 = (InstanceId(name) for name in ("p0", "p1", "d0", "d1"))
GENERATION = {P0: Generation(10), P1: Generation(11), D0: Generation(20), D1: Generation(21)}
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def a_member(instance: InstanceId, generation: Generation | None = None) -> Register:
    role = Role.PREFILL if instance.startswith("p") else Role.DECODE
    return Register(
        instance=instance,
        role=role,
        generation=GENERATION[instance] if generation is None else generation,
        endpoints=(f"inproc://{instance}",) if role is Role.PREFILL else (),
        layout=LAYOUT,
        context_length=100,
        kv_capacity_tokens=100,
        max_batch=2,
    )


def a_lifecycle(*members: InstanceId, queue: int = 4, prefill_slots: int = 1) -> Lifecycle:
    lifecycle = Lifecycle(Limits(queue=queue, prefill_slots=prefill_slots), FixedPolicy("full"))
    for instance in members or (P0, D0):
        assert lifecycle.handle(MemberJoined(a_member(instance))) == []
    return lifecycle


def a_spec(
    name: str, *, split: int | None = None, deadline_at: float = 100.0, choices: int = 1, max_tokens: int = 8
) -> RequestSpec:
    return RequestSpec(
        request=RequestId(name),
        prompt=(1, 2, 3, 4, 5),
        sampling=SamplingParams(seed=3),
        max_tokens=max_tokens,
        deadline_at=deadline_at,
        choices=choices,
        stop_tokens=(0,),
        min_tokens=1,
        split=split,
    )


def arrive(lifecycle: Lifecycle, spec: RequestSpec, now: float = 0.0) -> list[LifecycleEffect]:
    return lifecycle.handle(Arrived(now, spec, TransferId(f"t-{spec.request}"), b"secret"))


def a_ticket(name: str, prefill: InstanceId = P0, decode: InstanceId = D0) -> Ticket:
    return Ticket(
        TransferId(f"t-{name}"),
        b"secret",
        GENERATION[prefill],
        GENERATION[decode],
        (f"inproc://{prefill}",),
    )


def tokens(name: str, first: int, *ids: int, finish: FinishReason | None = None, choice: int = 0) -> EmittedTokens:
    return EmittedTokens(RequestId(name), choice, first, ids, finish)


def emit(
    lifecycle: Lifecycle,
    *items: EmittedTokens,
    decode: InstanceId = D0,
    generation: Generation | None = None,
) -> list[LifecycleEffect]:
    life = GENERATION[decode] if generation is None else generation
    return lifecycle.handle(TokensEmitted(decode, life, items))


def release(lifecycle: Lifecycle, name: str, prefill: InstanceId = P0) -> list[LifecycleEffect]:
    return lifecycle.handle(PrefillReleased(prefill, GENERATION[prefill], RequestId(name)))


def land(lifecycle: Lifecycle, name: str, decode: InstanceId = D0) -> list[LifecycleEffect]:
    return lifecycle.handle(KVLanded(decode, GENERATION[decode], RequestId(name), 768, 0.1, "tcp", "nobody"))


def lose(lifecycle: Lifecycle, instance: InstanceId, reason: LossReason = LossReason.SILENT) -> list[LifecycleEffect]:
    return lifecycle.handle(MemberLost(instance, GENERATION[instance], reason))


def fail_job(lifecycle: Lifecycle, instance: InstanceId, name: str) -> list[LifecycleEffect]:
    failure = Failure(FailureKind.HANDOFF_FAILED, "the wire is cut")
    return lifecycle.handle(JobFailed(instance, GENERATION[instance], RequestId(name), failure))


def places(effects: list[LifecycleEffect]) -> list[tuple[str, str | None, str]]:
    return [
        (effect.request, effect.placement.prefill, effect.placement.decode)
        for effect in effects
        if isinstance(effect, Place)
    ]


def kinds(effects: list[LifecycleEffect]) -> dict[str, FailureKind]:
    return {effect.request: effect.failure.kind for effect in effects if isinstance(effect, Fail)}


def aborts(effects: list[LifecycleEffect]) -> set[tuple[str, str]]:
    return {
        (effect.instance, effect.message.request)
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, Abort)
    }
