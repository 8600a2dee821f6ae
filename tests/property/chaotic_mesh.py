"""The life cycle against honest but chaotic workers: messages cross, repeat and vanish with the life that sent them.

Each worker has an inbox (from the gateway) and an outbox (to it), each in order; nothing is ordered between workers.
A run is drawn from a seed, step by step, and weighted so that most requests get somewhere: free choice among all
actions ends nearly every request before its first token.
"""

from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import msgspec

from common.errors import FailureKind
from common.ids import Generation, InstanceId, RequestId, TransferId
from common.messages.control import (
    Abort,
    EmittedTokens,
    KVLanded,
    PrefillReleased,
    RunDecode,
    RunPrefill,
    TokensEmitted,
)
from common.messages.sampling import SamplingParams
from services.scheduling.lifecycle.events import (
    Arrived,
    ClientGone,
    Deliver,
    Fail,
    Finish,
    LifecycleEvent,
    Place,
    Send,
)
from services.scheduling.lifecycle.lifecycle import Lifecycle
from services.scheduling.membership.members import LossReason, MemberJoined, MemberLost
from services.scheduling.placement import Placement
from services.scheduling.policies.capacity import CapacityPolicy
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import MeshView
from services.scheduling.request import RequestSpec
from services.scheduling.tick import Tick
from tests.property.honest_workers import (
    DECODES,
    LIMITS,
    MAX_BATCH,
    MAX_TOKENS,
    PREFILLS,
    Output,
    Worker,
    a_member,
    token,
)

T = TypeVar("T")
PROMPT = (1, 2, 3, 4, 5)


class WatchedFixed(FixedPolicy):
    """Keeps the mesh as it was shown last."""

    seen: MeshView

    def not_ready(self, mesh: MeshView) -> str | None:
        self.seen = mesh
        return super().not_ready(mesh)


class WatchedCapacity(CapacityPolicy):
    """Keeps the mesh as it was shown last."""

    seen: MeshView

    def not_ready(self, mesh: MeshView) -> str | None:
        self.seen = mesh
        return super().not_ready(mesh)


@dataclass
class Client:
    """What one client has seen."""

    spec: RequestSpec
    placement: Placement | None = None
    gone: bool = False
    ends: int = 0
    landed: bool = False
    finished: bool = False
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finishes: set[int] = field(default_factory=set)


class ChaoticMesh:
    """A life cycle, its clients and its workers; `step` does one thing drawn from `random`."""

    def __init__(self, random: Random, policy: WatchedFixed | WatchedCapacity, *, chaos: bool) -> None:
        self.random = random
        self.chaos = chaos
        self.policy = policy
        self.lifecycle = Lifecycle(LIMITS, policy)
        self.workers: dict[str, Worker] = {}
        self.clients: dict[RequestId, Client] = {}
        self.late: list[Output] = []
        """Messages of lives that are over."""
        self.now = 0.0
        self.lives = 0
        self.slots: set[tuple[str, RequestId]] = set()
        for name in (*PREFILLS, *DECODES):
            self.join(name)

    def step(self) -> None:
        progress = {
            self.arrive: 8,
            self.tick: 2,
            self.worker_hears: 20,
            self.gateway_hears: 20,
            self.hand_off: 10,
            self.decode: 20,
        }
        trouble = {
            self.tokens_come_twice: 8,
            self.late_message_comes: 4,
            self.leave: 2,
            self.job_fails: 2,
            self.die: 1,
            self.rejoin: 3,
        }
        actions = {**progress, **trouble} if self.chaos else progress
        [action] = self.random.choices(list(actions), list(actions.values()))
        action()

    def pick(self, candidates: list[T]) -> list[T]:
        """One of the candidates; none where there is none."""
        return [self.random.choice(candidates)] if candidates else []

    # ------------------------------------------------------------ the shell

    def perform(self, event: LifecycleEvent) -> None:
        if isinstance(event, PrefillReleased) and self.is_present(event.instance, event.generation):
            self.slots.discard((event.instance, event.request))
        if isinstance(event, KVLanded):
            self.clients[event.request].landed = True
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
                case Fail(request=request, failure=failure):
                    assert not (failure.kind is FailureKind.PREFILL_LOST and self.clients[request].landed)
                    self.clients[request].ends += 1

    def check_sent(self, instance: InstanceId, message: RunPrefill | RunDecode | Abort) -> None:
        if isinstance(message, Abort):
            return
        assert message.deadline_s > 0
        generation = self.workers[instance].member.generation
        if isinstance(message, RunPrefill):
            assert (instance, message.request) not in self.slots
            self.slots.add((instance, message.request))
            assert message.ticket.prefill_generation == generation
        elif message.ticket is not None:
            assert message.ticket.decode_generation == generation

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
        self.workers[name] = Worker(a_member(name, self.lives))
        self.perform(MemberJoined(self.workers[name].member))

    def is_present(self, instance: InstanceId, generation: Generation) -> bool:
        return instance in self.workers and self.workers[instance].member.generation == generation

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

    def arrive(self) -> None:
        request = RequestId(f"r{len(self.clients)}")
        spec = RequestSpec(
            request=request,
            prompt=PROMPT,
            sampling=SamplingParams(),
            max_tokens=MAX_TOKENS,
            deadline_at=self.now + self.patience_s(),
            choices=self.random.randint(1, 2),
            split=self.random.choice([None, None, None, 0, 1, 0.5]),
        )
        self.clients[request] = Client(spec)
        self.perform(Arrived(self.now, spec, TransferId(request), b"secret"))

    def patience_s(self) -> float:
        return self.random.choice([2.0, 20.0, 20.0]) if self.chaos else 1e6

    def leave(self) -> None:
        for request in self.pick(list(self.clients)[-6:]):
            self.clients[request].gone = True
            self.perform(ClientGone(request))

    def tick(self) -> None:
        self.pass_time(self.random.choice([0.1, 0.5, 1.0]))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.perform(Tick(self.now))
        for request, client in self.clients.items():
            if client.spec.deadline_at <= self.now:
                assert client.gone or client.ends == 1, f"{request} outlived its deadline"

    # ------------------------------------------------------------ messages

    def worker_hears(self) -> None:
        for worker in self.pick([worker for worker in self.workers.values() if worker.inbox]):
            for _ in range(self.random.randint(1, len(worker.inbox))):
                worker.receive()

    def gateway_hears(self) -> None:
        for worker in self.pick([worker for worker in self.workers.values() if worker.outbox]):
            for _ in range(self.random.randint(1, len(worker.outbox))):
                self.perform(worker.outbox.popleft())

    def tokens_come_twice(self) -> None:
        for worker in self.pick([worker for worker in self.workers.values() if worker.outbox]):
            message = worker.outbox[0]
            if isinstance(message, TokensEmitted):
                nonsense = tuple(msgspec.structs.replace(item, tokens=(-1,) * 5) for item in message.items)
                self.perform(TokensEmitted(message.instance, Generation(-1), nonsense))
                self.perform(message)

    def late_message_comes(self) -> None:
        if self.late:
            self.perform(self.late.pop(0))

    # ------------------------------------------------------------ workers

    def hand_off(self) -> None:
        for worker, request in self.pick(self.decoding(landed=False)):
            self.try_hand_off(worker, request)

    def try_hand_off(self, worker: Worker, request: RequestId) -> bool:
        source = self.source(worker.decodes[request].job)
        if source is not None:
            worker.land(request, source)
        return source is not None

    def decode(self) -> None:
        for worker, request in self.pick(self.decoding(landed=True)):
            for choice in self.pick(worker.decodes[request].open_choices()):
                repeat = self.random.randint(0, 2) if self.chaos else 0
                worker.emit(request, choice, repeat, self.random.randint(1, MAX_TOKENS))

    def job_fails(self) -> None:
        jobs = self.prefilling() + self.decoding(landed=False) + self.decoding(landed=True)
        for worker, request in self.pick(jobs):
            worker.give_up(request, released_first=self.random.random() < 0.5)

    def die(self) -> None:
        for name in self.pick(list(self.workers)):
            worker = self.workers.pop(name)
            self.late += worker.outbox
            self.slots = {(instance, request) for instance, request in self.slots if instance != name}
            self.perform(MemberLost(*worker.life, LossReason.SILENT))

    def rejoin(self) -> None:
        for name in self.pick([name for name in (*PREFILLS, *DECODES) if name not in self.workers]):
            self.join(name)

    # ------------------------------------------------------------ what is known of it

    def unended(self) -> list[Client]:
        return [client for client in self.clients.values() if not client.gone and client.ends == 0]

    def outstanding(self, name: str) -> int:
        if name in PREFILLS:
            return sum(instance == name for instance, _ in self.slots)
        return sum(client.placement is not None and client.placement.decode == name for client in self.unended())

    def most(self, name: str) -> int:
        return LIMITS.prefill_slots if name in PREFILLS else LIMITS.decode_batches * MAX_BATCH

    # ------------------------------------------------------------ the end

    def exchange_messages(self) -> None:
        while any(worker.inbox or worker.outbox for worker in self.workers.values()):
            for worker in list(self.workers.values()):
                while worker.inbox:
                    worker.receive()
                while worker.outbox:
                    self.perform(worker.outbox.popleft())

    def work_honestly(self) -> bool:
        worked = False
        for worker, request in self.decoding(landed=False):
            worked |= self.try_hand_off(worker, request)
        for worker, request in self.decoding(landed=True):
            for choice in worker.decodes[request].open_choices():
                worker.emit(request, choice, 1, MAX_TOKENS)
                worked = True
        return worked
