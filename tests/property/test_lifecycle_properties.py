"""The life cycle against honest but chaotic workers: messages cross, repeat and vanish with the life that sent them.

Each worker has an inbox (from the gateway) and an outbox (to it), each in order; nothing is ordered between workers.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.errors import Failure, FailureKind
from common.ids import Generation, InstanceId, RequestId, TransferId
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
from common.messages.sampling import SamplingParams
from services.scheduling.fixed import FixedPolicy
from services.scheduling.lifecycle import Lifecycle, Limits
from services.scheduling.lifecycle_events import (
    Arrived,
    ClientGone,
    Deliver,
    Fail,
    Finish,
    Holdings,
    LifecycleEvent,
    Place,
    Send,
)
from services.scheduling.members import LossReason, MemberJoined, MemberLost
from services.scheduling.placement import Placement
from services.scheduling.request import RequestSpec
from services.scheduling.tick import Tick

LAYOUT = KVLayout("tiny", KVDType.FLOAT32, 16, KVOrder.NHD, Interval(0, 2), Interval(0, 3), 8)
PREFILLS = ("p0", "p1")
DECODES = ("d0", "d1")
LIMITS = Limits(queue=3, prefill_slots=2, decode_batches=2)
MAX_BATCH = 2
MAX_TOKENS = 4

T = TypeVar("T")
Output = TokensEmitted | PrefillReleased | KVLanded | JobFailed


def token(request: RequestId, choice: int, number: int) -> int:
    """The one true token: what a client must see at this place."""
    return int(request[1:]) * 1000 + choice * 100 + number


def pick(data: st.DataObject, candidates: list[T]) -> list[T]:
    """One of the candidates; none where there is none."""
    return [data.draw(st.sampled_from(candidates))] if candidates else []


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
    def name(self) -> tuple[InstanceId, Generation]:
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
            self.outbox.append(PrefillReleased(*self.name, request))

    def emit(self, request: RequestId, choice: int, repeat: int, count: int) -> None:
        """The next `count` tokens of a choice, with up to `repeat` of those before them."""
        work = self.decodes[request]
        first = max(0, work.emitted[choice] - repeat)
        stop = min(MAX_TOKENS, work.emitted[choice] + count)
        work.emitted[choice] = stop
        ids = tuple(token(request, choice, number) for number in range(first, stop))
        finish = FinishReason.LENGTH if stop == MAX_TOKENS else None
        self.outbox.append(TokensEmitted(*self.name, (EmittedTokens(request, choice, first, ids, finish),)))
        if not work.open_choices():
            del self.decodes[request]


@dataclass
class Client:
    """What one client has seen."""

    spec: RequestSpec
    placement: Placement | None = None
    gone: bool = False
    ends: int = 0
    finished: bool = False
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finishes: set[int] = field(default_factory=set)


class ChaoticMesh(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lifecycle = Lifecycle(LIMITS, FixedPolicy("full"))
        self.workers: dict[str, Worker] = {}
        self.clients: dict[RequestId, Client] = {}
        self.now = 0.0
        self.lives = 0
        self.slots: set[tuple[str, RequestId]] = set()
        for name in (*PREFILLS, *DECODES):
            self.join(name)

    # ------------------------------------------------------------ the shell

    def perform(self, event: LifecycleEvent) -> None:
        if isinstance(event, PrefillReleased):
            self.slots.discard((event.instance, event.request))
        for effect in self.lifecycle.handle(event):
            match effect:
                case Send(instance=instance, message=message):
                    self.workers[instance].inbox.append(message)
                    self.check_sent(instance, message)
                case Place(request=request, placement=placement):
                    client = self.clients[request]
                    assert client.placement is None
                    client.placement = placement
                case Deliver(tokens=tokens):
                    self.deliver(tokens)
                case Finish(request=request):
                    client = self.clients[request]
                    assert client.finishes == set(range(client.spec.choices))
                    client.finished = True
                    client.ends += 1
                case Fail(request=request):
                    self.clients[request].ends += 1

    def check_sent(self, instance: InstanceId, message: RunPrefill | RunDecode | Abort) -> None:
        if isinstance(message, Abort):
            return
        assert message.deadline_s > 0
        if isinstance(message, RunPrefill):
            assert (instance, message.request) not in self.slots
            self.slots.add((instance, message.request))
            assert message.ticket.prefill_generation == self.workers[instance].member.generation
        elif message.ticket is not None:
            assert message.ticket.decode_generation == self.workers[instance].member.generation

    def deliver(self, item: EmittedTokens) -> None:
        client = self.clients[item.request]
        assert client.placement is not None
        assert client.ends == 0
        assert not client.gone
        assert item.choice not in client.finishes
        seen = client.tokens.setdefault(item.choice, [])
        assert item.first == len(seen)
        assert item.tokens or item.finish is not None
        seen.extend(item.tokens)
        assert seen == [token(item.request, item.choice, number) for number in range(len(seen))]
        if item.finish is not None:
            assert len(seen) == MAX_TOKENS
            client.finishes.add(item.choice)

    def join(self, name: str) -> None:
        self.lives += 1
        member = Register(
            instance=InstanceId(name),
            role=Role.PREFILL if name in PREFILLS else Role.DECODE,
            generation=Generation(self.lives),
            endpoints=(),
            layout=LAYOUT,
            context_length=64,
            kv_capacity_tokens=64,
            max_batch=MAX_BATCH,
        )
        self.workers[name] = Worker(member)
        self.perform(MemberJoined(member))

    def lose(self, name: str) -> None:
        worker = self.workers.pop(name)
        self.slots = {(instance, request) for instance, request in self.slots if instance != name}
        self.perform(MemberLost(*worker.name, LossReason.SILENT))

    def prefilling(self) -> list[tuple[Worker, RequestId]]:
        return [(worker, request) for worker in self.workers.values() for request in worker.prefills]

    def decoding(self, *, landed: bool) -> list[tuple[Worker, RequestId]]:
        return [
            (worker, request)
            for worker in self.workers.values()
            for request, work in worker.decodes.items()
            if work.landed is landed
        ]

    def source(self, job: RunDecode) -> Worker | None:
        """The life of P that holds the KV under the job's ticket."""
        for worker in self.workers.values():
            held = worker.prefills.get(job.request)
            if held is not None and held.ticket == job.ticket:
                return worker
        return None

    # ------------------------------------------------------------ clients and time

    @rule(
        split=st.sampled_from([None, None, 0, 1, 0.5]),
        choices=st.integers(1, 2),
        patience_s=st.sampled_from([1.0, 5.0, 50.0]),
    )
    def arrive(self, split: int | float | None, choices: int, patience_s: float) -> None:
        request = RequestId(f"r{len(self.clients)}")
        spec = RequestSpec(
            request=request,
            prompt=(1, 2, 3, 4, 5),
            sampling=SamplingParams(),
            max_tokens=MAX_TOKENS,
            deadline_at=self.now + patience_s,
            choices=choices,
            split=split,
        )
        self.clients[request] = Client(spec)
        self.perform(Arrived(self.now, spec, TransferId(request), b"secret"))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        for request in pick(data, list(self.clients)[-4:]):
            self.clients[request].gone = True
            self.perform(ClientGone(request))

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.perform(Tick(self.now))
        for request, client in self.clients.items():
            if client.spec.deadline_at <= self.now:
                assert client.gone or client.ends == 1, f"{request} outlived its deadline"

    # ------------------------------------------------------------ messages

    @rule(data=st.data(), count=st.integers(1, 4))
    def worker_hears(self, data: st.DataObject, count: int) -> None:
        for worker in pick(data, [worker for worker in self.workers.values() if worker.inbox]):
            for _ in range(min(count, len(worker.inbox))):
                worker.receive()

    @rule(data=st.data(), count=st.integers(1, 4))
    def gateway_hears(self, data: st.DataObject, count: int) -> None:
        for worker in pick(data, [worker for worker in self.workers.values() if worker.outbox]):
            for _ in range(min(count, len(worker.outbox))):
                self.perform(worker.outbox.popleft())

    @rule()
    def everyone_hears(self) -> None:
        self.exchange_messages()

    @rule(data=st.data())
    def tokens_come_twice(self, data: st.DataObject) -> None:
        for worker in pick(data, [worker for worker in self.workers.values() if worker.outbox]):
            message = worker.outbox[0]
            if isinstance(message, TokensEmitted):
                nonsense = tuple(msgspec.structs.replace(item, tokens=(-1,) * 5) for item in message.items)
                self.perform(TokensEmitted(message.instance, Generation(-1), nonsense))
                self.perform(message)

    # ------------------------------------------------------------ workers

    @rule(data=st.data())
    def hand_off(self, data: st.DataObject) -> None:
        for worker, request in pick(data, self.decoding(landed=False)):
            self.try_hand_off(worker, request)

    @rule()
    def hand_off_all(self) -> None:
        for worker, request in self.decoding(landed=False):
            self.try_hand_off(worker, request)

    @rule(data=st.data(), repeat=st.integers(0, 2), count=st.integers(1, MAX_TOKENS))
    def decode(self, data: st.DataObject, repeat: int, count: int) -> None:
        for worker, request in pick(data, self.decoding(landed=True)):
            for choice in pick(data, worker.decodes[request].open_choices()):
                worker.emit(request, choice, repeat, count)

    @rule(data=st.data(), released_first=st.booleans())
    def prefill_fails(self, data: st.DataObject, released_first: bool) -> None:
        for worker, request in pick(data, self.prefilling()):
            failed = JobFailed(*worker.name, request, Failure(FailureKind.ENGINE_FAILED, "no memory"))
            if not released_first:
                worker.outbox.append(failed)
            worker.release(request)
            if released_first:
                worker.outbox.append(failed)

    @rule(data=st.data())
    def decode_fails(self, data: st.DataObject) -> None:
        for worker, request in pick(data, self.decoding(landed=False) + self.decoding(landed=True)):
            del worker.decodes[request]
            failure = Failure(FailureKind.HANDOFF_FAILED, "no progress")
            worker.outbox.append(JobFailed(*worker.name, request, failure))

    @rule(name=st.sampled_from((*PREFILLS, *DECODES)))
    def die_or_join(self, name: str) -> None:
        if name in self.workers:
            self.lose(name)
        else:
            self.join(name)

    @rule(name=st.sampled_from((*PREFILLS, *DECODES)))
    def restart(self, name: str) -> None:
        if name in self.workers:
            self.lose(name)
            self.join(name)

    # ------------------------------------------------------------ what always holds

    @invariant()
    def everyone_ends_at_most_once(self) -> None:
        for client in self.clients.values():
            assert client.ends <= 1
            if client.finished:
                assert all(len(seen) == MAX_TOKENS for seen in client.tokens.values())

    @invariant()
    def bounds_are_kept(self) -> None:
        assert self.lifecycle.holdings().queued <= LIMITS.queue
        assert self.lifecycle.holdings().slots == len(self.slots)
        for name in self.workers:
            assert self.outstanding(name) <= self.most(name)

    @invariant()
    def accepted_requests_are_held_until_they_end(self) -> None:
        holdings = self.lifecycle.holdings()
        unended = self.unended()
        assert holdings.requests + holdings.queued == len(unended)
        assert holdings.queued == sum(client.placement is None for client in unended)

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        has_slot = any(self.outstanding(name) < self.most(name) for name in PREFILLS if name in self.workers)
        has_room = any(self.outstanding(name) < self.most(name) for name in DECODES if name in self.workers)
        for client in self.unended():
            if client.placement is None:
                assert not (has_room and (has_slot or client.spec.split == 0)), f"{client} waits for nothing"

    def unended(self) -> list[Client]:
        return [client for client in self.clients.values() if not client.gone and client.ends == 0]

    def outstanding(self, name: str) -> int:
        if name in PREFILLS:
            return sum(instance == name for instance, _ in self.slots)
        return sum(client.placement is not None and client.placement.decode == name for client in self.unended())

    def most(self, name: str) -> int:
        return LIMITS.prefill_slots if name in PREFILLS else LIMITS.decode_batches * MAX_BATCH

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        self.exchange_messages()
        self.check_that_ended_requests_are_held_nowhere()
        # Workers finish what they can; only a request whose P is gone waits for its deadline.
        while self.work_honestly():
            self.exchange_messages()
        self.tick(1000.0)
        self.exchange_messages()
        self.check_that_ended_requests_are_held_nowhere()
        assert self.lifecycle.holdings() == Holdings(requests=0, queued=0, slots=0)
        assert self.lifecycle.is_idle()
        for client in self.clients.values():
            assert client.ends == 1 or client.gone

    def exchange_messages(self) -> None:
        while any(worker.inbox or worker.outbox for worker in self.workers.values()):
            for worker in list(self.workers.values()):
                while worker.inbox:
                    worker.receive()
                while worker.outbox:
                    self.perform(worker.outbox.popleft())

    def check_that_ended_requests_are_held_nowhere(self) -> None:
        for worker in self.workers.values():
            for request in (*worker.prefills, *worker.decodes):
                client = self.clients[request]
                assert not client.gone, f"{worker.name} was not told that the client of {request} is gone"
                assert client.ends == 0, f"{worker.name} was not told that {request} has ended"

    def work_honestly(self) -> bool:
        worked = False
        for worker, request in self.decoding(landed=False):
            worked |= self.try_hand_off(worker, request)
        for worker, request in self.decoding(landed=True):
            for choice in worker.decodes[request].open_choices():
                worker.emit(request, choice, 1, MAX_TOKENS)
                worked = True
        return worked

    def try_hand_off(self, worker: Worker, request: RequestId) -> bool:
        work = worker.decodes[request]
        if (source := self.source(work.job)) is None:
            return False
        work.landed = True
        worker.outbox.append(KVLanded(*worker.name, request, 1, 0.1))
        source.release(request)
        return True


ChaoticMesh.TestCase.settings = settings(max_examples=100, stateful_step_count=80, deadline=None)
TestChaoticMesh = ChaoticMesh.TestCase
