"""Workers that keep the protocol, one life each: what they do next, and what of it is lost, is the test's to say."""

from collections import deque
from dataclasses import dataclass, field

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.errors import Failure, FailureKind
from common.ids import Generation, InstanceId, RequestId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import (
    Abort,
    EmittedTokens,
    FinishReason,
    JobFailed,
    KVLanded,
    PrefillReleased,
    Register,
    Role,
    RunDecode,
    RunPrefill,
    TokensEmitted,
)
from services.scheduling.lifecycle.lifecycle import Limits

LAYOUT = KVLayout("tiny", KVDType.FLOAT32, 2, KVOrder.NHD, Interval(0, 2), Interval(0, 3), 8)
# P helps with a short prompt where it is free, and is not worth waiting for where it is not.
COSTS = InstanceCosts(
    PrefillCost(0.0, 0.006),
    MixedStepCost(0.0, 0.01, 0.0, 0.0),
    DecodeStepCost(base=1e-4, per_sequence=0.0, per_context=0.0),
)
PREFILLS = ("p0", "p1")
DECODES = ("d0", "d1")
LIMITS = Limits(queue=3, prefill_slots=2, decode_batches=2)
MAX_BATCH = 2
MAX_TOKENS = 4

Output = TokensEmitted | PrefillReleased | KVLanded | JobFailed


def token(request: RequestId, choice: int, number: int) -> int:
    """The one true token: what a client must see at this place."""
    return int(request[1:]) * 1000 + choice * 100 + number


def a_member(name: str, generation: int) -> Register:
    return Register(
        instance=InstanceId(name),
        role=Role.PREFILL if name in PREFILLS else Role.DECODE,
        generation=Generation(generation),
        endpoints=(),
        layout=LAYOUT,
        context_length=64,
        kv_capacity_tokens=64,
        max_batch=MAX_BATCH,
        costs=COSTS,
    )


@dataclass
class DecodeWork:
    job: RunDecode
    landed: bool
    emitted: list[int]
    """Tokens so far, per choice; MAX_TOKENS ends it."""

    def open_choices(self) -> list[int]:
        return [choice for choice, count in enumerate(self.emitted) if count < MAX_TOKENS]


@dataclass
class Worker:
    """One life of an instance."""

    member: Register
    inbox: deque[RunPrefill | RunDecode | Abort] = field(default_factory=deque)
    outbox: deque[Output] = field(default_factory=deque)
    prefills: dict[RequestId, RunPrefill] = field(default_factory=dict)
    decodes: dict[RequestId, DecodeWork] = field(default_factory=dict)

    @property
    def life(self) -> tuple[InstanceId, Generation]:
        return self.member.instance, self.member.generation

    def receive(self) -> None:
        match self.inbox.popleft():
            case RunPrefill() as job:
                assert job.request not in self.prefills
                self.prefills[job.request] = job
                assert len(self.prefills) <= LIMITS.prefill_slots
            case RunDecode() as job:
                assert job.request not in self.decodes
                self.decodes[job.request] = DecodeWork(job, job.split == 0, [0] * job.choices)
            case Abort(request=request):
                self.decodes.pop(request, None)
                self.release(request)

    def release(self, request: RequestId) -> None:
        if self.prefills.pop(request, None) is not None:
            self.outbox.append(PrefillReleased(*self.life, request))

    def emit(self, request: RequestId, choice: int, repeat: int, count: int) -> None:
        """The next `count` tokens of a choice, with up to `repeat` of those before them."""
        work = self.decodes[request]
        first = max(0, work.emitted[choice] - repeat)
        stop = min(MAX_TOKENS, work.emitted[choice] + count)
        work.emitted[choice] = stop
        ids = tuple(token(request, choice, number) for number in range(first, stop))
        finish = FinishReason.LENGTH if stop == MAX_TOKENS else None
        self.outbox.append(TokensEmitted(*self.life, (EmittedTokens(request, choice, first, ids, finish),)))
        if not work.open_choices():
            del self.decodes[request]

    def land(self, request: RequestId, source: "Worker") -> None:
        """Take over the KV from P, which is then done with the request."""
        self.decodes[request].landed = True
        self.outbox.append(KVLanded(*self.life, request, 1, 0.1, "tcp", "nobody"))
        source.release(request)

    def give_up(self, request: RequestId, *, released_first: bool) -> None:
        failed = JobFailed(*self.life, request, Failure(FailureKind.ENGINE_FAILED, "no memory"))
        self.decodes.pop(request, None)
        if not released_first:
            self.outbox.append(failed)
        self.release(request)
        if released_first:
            self.outbox.append(failed)
