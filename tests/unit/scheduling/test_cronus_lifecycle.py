"""The policy `cronus` in the real life cycle: first in, first out, two at a P, and the split of the last moment."""

from collections import Counter
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ids import Generation, InstanceId, RequestId, TransferId
from common.messages.control import (
    DecodeProgress,
    EmittedTokens,
    FinishReason,
    KVLanded,
    Load,
    PrefillReleased,
    Register,
    RunPrefill,
    TokensEmitted,
)
from services.scheduling.lifecycle.events import Arrived, ClientGone, Fail, LifecycleEvent, Place, Send
from services.scheduling.lifecycle.lifecycle import Lifecycle, Limits
from services.scheduling.membership.members import LoadReported, LossReason, MemberJoined, MemberLost
from services.scheduling.placement import Placement
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.cronus import CronusPolicy, CronusSettings
from services.scheduling.policies.routing import MeshView, Wait
from services.scheduling.request import RequestSpec
from tests.unit.scheduling.costs_case import a_member, a_request

SLOTS_PER_P = 2
PREFILLS, DECODES = ("p0", "p1"), ("d0", "d1")
D0 = InstanceId("d0")
ONE = Generation(1)


class Recording(CronusPolicy):
    """Remembers what it was asked last, and its answer."""

    def __init__(self, balance: Balance) -> None:
        super().__init__(CronusSettings(balance=balance))
        self.asked: list[tuple[RequestSpec, MeshView, Placement | Wait]] = []

    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        answer = super().place(request, mesh)
        self.asked.append((request, mesh, answer))
        return answer


class Gateway:
    """A life cycle, and what its workers hold."""

    def __init__(self, *names: str, balance: Balance, prefill_slots: int = SLOTS_PER_P) -> None:
        self.policy = Recording(balance)
        self.lifecycle = Lifecycle(Limits(queue=10_000, prefill_slots=prefill_slots), self.policy)
        self.members: dict[str, Register] = {}
        self.waiting: list[RequestSpec] = []
        self.placed: dict[RequestId, Placement] = {}
        self.slots: set[tuple[InstanceId, Generation, RequestId]] = set()
        self.lives = 0
        for name in names:
            self.join(name)

    def hear(self, event: LifecycleEvent) -> None:
        self.policy.asked.clear()
        for effect in self.lifecycle.handle(event):
            match effect:
                case Place(request, placement):
                    self.note_placed(request, placement)
                case Send(instance, RunPrefill(request=request)):
                    self.slots.add((instance, self.members[instance].generation, request))
                case Fail(request):
                    self.waiting = [spec for spec in self.waiting if spec.request != request]
                    self.placed.pop(request, None)
                case _:
                    pass

    def note_placed(self, request: RequestId, placement: Placement) -> None:
        spec = next(spec for spec in self.waiting if spec.request == request)
        [answer] = [answer for asked, _, answer in self.policy.asked if asked is spec and isinstance(answer, Placement)]
        assert placement is answer, "what was decided in this event"
        line = [each for each in self.waiting if (len(each.prompt) > 1) == (len(spec.prompt) > 1)]
        assert spec is line[0], "first in, first out"
        self.waiting.remove(spec)
        self.placed[request] = placement

    def arrive(self, spec: RequestSpec) -> None:
        self.waiting.append(spec)
        self.hear(Arrived(0.0, spec, TransferId(spec.request), b"secret"))

    def join(self, name: str) -> None:
        self.lives += 1
        self.members[name] = msgspec.structs.replace(a_member(name), generation=Generation(self.lives))
        self.hear(MemberJoined(self.members[name]))

    def lose(self, name: str) -> None:
        life = self.members.pop(name)
        self.slots = {slot for slot in self.slots if slot[0] != name}
        self.hear(MemberLost(life.instance, life.generation, LossReason.SILENT))

    def release(self, slot: tuple[InstanceId, Generation, RequestId]) -> None:
        self.slots.discard(slot)
        self.hear(PrefillReleased(*slot))

    def emit(self, request: RequestId, first: int, tokens: int, finish: FinishReason | None = None) -> None:
        decode = self.members[self.placed[request].decode]
        item = EmittedTokens(request, 0, first, (0,) * tokens, finish)
        progress = DecodeProgress(1000, 0)
        self.hear(TokensEmitted(decode.instance, decode.generation, (item,), progress))

    def report(self, name: str, cost_factor: float) -> None:
        member = self.members[name]
        self.hear(LoadReported(member.instance, member.generation, Load(cost_factor=cost_factor)))


class RandomTraffic:
    """Honest workers and clients in any order."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.gateway = Gateway(*PREFILLS, *DECODES, balance=random.choice(list(Balance)))
        self.count = 0
        self.begun: set[RequestId] = set()

    def step(self) -> None:
        actions = (
            [self.arrive] * 5 + [self.release] * 2 + [self.emit] * 5 + [self.report, self.leave, self.lose_or_join]
        )
        self.random.choice(actions)()
        self.check()

    def arrive(self) -> None:
        prompt = self.random.choice([1, 2, 17, 400, 3000])
        split = self.random.choice([None, None, None, "full"])
        self.gateway.arrive(a_request(prompt, self.random.randint(2, 900), name=str(self.count), split=split))
        self.count += 1

    def release(self) -> None:
        if self.gateway.slots:
            slot = self.random.choice(sorted(self.gateway.slots))
            decode = self.gateway.placed.get(slot[2])
            if decode is not None:
                life = self.gateway.members[decode.decode]
                self.gateway.hear(KVLanded(life.instance, life.generation, slot[2], 1, 0.1, "tcp", "nobody"))
            self.gateway.release(slot)

    def emit(self) -> None:
        held = {request for _, _, request in self.gateway.slots}
        ready = sorted(request for request in self.gateway.placed if request not in held)
        if not ready:
            return
        request = self.random.choice(ready)
        if request not in self.begun:
            self.begun.add(request)
            self.gateway.emit(request, 0, 1)
        else:
            self.gateway.emit(request, 1, self.random.randint(1, 900), FinishReason.STOP)
            del self.gateway.placed[request]

    def report(self) -> None:
        self.gateway.report(self.random.choice(sorted(self.gateway.members)), self.random.choice([0.5, 1.0, 3.0]))

    def leave(self) -> None:
        running = sorted(self.gateway.placed)
        if running:
            request = self.random.choice(running)
            del self.gateway.placed[request]
            self.gateway.hear(ClientGone(request))

    def lose_or_join(self) -> None:
        name = self.random.choice(PREFILLS)
        if name in self.gateway.members:
            self.gateway.lose(name)
        else:
            self.gateway.join(name)

    def check(self) -> None:
        gateway = self.gateway
        taken = Counter(instance for instance, _, _ in gateway.slots)
        assert all(count <= SLOTS_PER_P for count in taken.values()), f"{taken} at one time"
        assert gateway.lifecycle.holdings().slots == len(gateway.slots)
        assert gateway.lifecycle.holdings().queued == len(gateway.waiting)
        if gateway.waiting:
            present = [name for name in PREFILLS if name in gateway.members]
            assert present
            assert all(taken[InstanceId(name)] == SLOTS_PER_P for name in present), "nobody waits beside a free slot"
            assert all(len(spec.prompt) > 1 for spec in gateway.waiting), "one token waits for no P"


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 200))
def test_any_traffic_is_served_in_turn_with_two_at_a_p_at_most(seed: int, steps: int) -> None:
    """D has room for all of it: only slots are waited for."""
    traffic = RandomTraffic(Random(seed))
    for _ in range(steps):
        traffic.step()


def test_the_traffic_above_reaches_every_case() -> None:
    """Guards it: lines that never form would prove little."""
    waited = helped = alone = 0
    for seed in range(10):
        traffic = RandomTraffic(Random(seed))
        for _ in range(200):
            traffic.step()
            waited += bool(traffic.gateway.waiting)
            helped += any(placement.split for placement in traffic.gateway.placed.values())
            alone += any(not placement.split for placement in traffic.gateway.placed.values())
    assert min(waited, helped, alone) > 100


# ---------------------------------------------------------------- late binding


def split_after(*reports: tuple[str, float], balance: Balance = Balance.STAGES, before: bool = False) -> int:
    """The split of a request that waits for the one slot while members say how fast they are."""
    gateway = Gateway("p0", "d0", balance=balance, prefill_slots=1)
    gateway.arrive(a_request(3000, name="first", split="full"))
    if before:
        for report in reports:
            gateway.report(*report)
    gateway.arrive(a_request(3000, name="second"))
    gateway.arrive(a_request(3000, name="third"))
    assert [spec.request for spec in gateway.waiting] == ["second", "third"]
    for report in reports:
        gateway.report(*report)
    gateway.release((InstanceId("p0"), ONE, RequestId("first")))
    placed = gateway.placed[RequestId("second")]
    assert (RequestId("third") in gateway.placed) is (placed.prefill is None), "the slot has one, or none needs it"
    return gateway.placed[RequestId("second")].split


def test_the_split_is_decided_when_the_slot_frees() -> None:
    assert split_after(("d0", 3.0)) > split_after() > split_after(("p0", 3.0))
    assert split_after(("d0", 3.0)) == split_after(("d0", 3.0), before=True)
    assert split_after(("d0", 3.0), ("d0", 1.0)) == split_after()


def test_so_it_is_for_the_earliest_first_token() -> None:
    """D is idle, so that the quicker of the two computes: D, unless it has become slow."""
    finish = Balance.FINISH
    assert split_after(balance=finish) == 0
    assert split_after(("d0", 3.0), balance=finish) == 2999
    assert split_after(("d0", 3.0), balance=finish, before=True) == 2999
    assert split_after(("d0", 3.0), ("p0", 5.0), balance=finish) == 0


@pytest.mark.parametrize("balance", list(Balance))
def test_the_split_follows_what_d_decodes_at_that_moment(balance: Balance) -> None:
    splits = []
    for context in (0, 400_000):
        gateway = Gateway("p0", "d0", balance=balance, prefill_slots=1)
        gateway.arrive(a_request(3000, name="first", split="full"))
        for name in ("second", "third"):
            gateway.arrive(a_request(3000, name=name))
        first = EmittedTokens(RequestId("first"), 0, 0, (0,))
        decode = gateway.members["d0"]
        gateway.hear(TokensEmitted(D0, decode.generation, (first,), DecodeProgress(context, 0)))
        assert len(gateway.waiting) == 2
        gateway.release((InstanceId("p0"), ONE, RequestId("first")))
        splits.append(gateway.placed[RequestId("second")].split)
    assert splits[0] < splits[1]
