"""The discrete-event loop: the gateway's own life cycle, simulated engines and links, one clock.

Events at equal times are handled in the order of `Order`; among equals, first scheduled, first handled.  Messages take
no time: what follows from an event happens before the next event.
"""

import heapq
from collections.abc import Callable
from enum import IntEnum

from common.errors import Failure
from common.ids import Generation, InstanceId, TransferId
from common.messages.control import LinkFigures, LinkMeasured, Register, Role, RunDecode, RunPrefill
from services.scheduling.ledgers.output_lengths import OutputLengths
from services.scheduling.lifecycle.events import Arrived, Fail, LifecycleEffect, LifecycleEvent, Place, Send
from services.scheduling.lifecycle.lifecycle import Lifecycle, Limits
from services.scheduling.membership.members import MemberJoined
from services.scheduling.policies.routing import PlacementPolicy
from services.simulator.clients import Clients
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.engine.events import SimulationError
from services.simulator.gaps import GapHistogram
from services.simulator.records import RequestRecord
from services.simulator.workers import SimulatedDecode, SimulatedPrefill, SimulatedWorker
from services.simulator.workload.requests import Workload

GENERATION = Generation(1)
_NEVER = float("inf")
_PROGRESS_CALLS = 100


class Order(IntEnum):
    """What is handled first among events at one time: engines last.

    So a command that comes at the very end of a step is taken there, whether that step is one by itself or one of a run
    that the engine makes in one go, and requests that come together are in one step.
    """

    LANDED = 0
    """A hand-off ends."""
    ARRIVAL = 1
    """A request arrives."""
    STEP = 2
    """An engine ends a step, if it is in one, takes its commands and begins the next."""


class Simulation:
    """One run. `run` serves the whole workload; the records and the workers then hold what happened.

    `max_tokens` and `output_lengths` (a name, or a predictor) are what Clients takes them for.
    `on_progress` hears the share of the requests that have ended, 1 at last, in at most 100 calls.
    Raises SimulationError where a request can never be served, or the books do not balance at the end.
    """

    def __init__(
        self,
        cluster: Cluster,
        policy: PlacementPolicy,
        workload: Workload,
        *,
        prefill_slots: int = 2,
        decode_batches: int = 2,
        max_tokens: int | None = None,
        output_lengths: str | OutputLengths = "quantile",
        checked: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        self.cluster = cluster
        self.records = [
            RequestRecord(request.arrival_s, request.prompt_tokens, request.output_tokens)
            for request in workload.requests
        ]
        self._clients = Clients(workload, max_tokens)
        self.gaps = GapHistogram()
        self.now = 0.0
        limits = Limits(queue=len(self.records), prefill_slots=prefill_slots, decode_batches=decode_batches)
        self._lifecycle = Lifecycle(limits, policy, self._clients.predictor(output_lengths))
        self._tells_tokens = policy.counts_tokens
        self._heap: list[tuple[float, Order, int, SimulatedWorker | None, int]] = []
        self._scheduled = 0
        self._checked = checked
        self.workers = {spec.name: self._worker(spec) for spec in cluster.instances}
        self._next_arrival = 0
        self._ended = 0
        self._on_progress = on_progress
        self._stride = -(-len(self.records) // _PROGRESS_CALLS)
        self._tell_at = self._stride

    def run(self) -> None:
        """Serve every request of the workload to its end."""
        self._join()
        self._schedule_arrival()
        while self._heap:
            at, order, _, worker, key = heapq.heappop(self._heap)
            if at < self.now:
                raise SimulationError(f"an event of {order.name} at {at!r} s comes after {self.now!r} s")
            if order is Order.STEP:
                assert worker is not None
                if worker.wakes_at != at:
                    continue  # its plans have changed since
                self.now = at
                worker.wakes_at = _NEVER
                self._advance(worker)
            else:
                self.now = at
                if order is Order.ARRIVAL:
                    self._arrive()
                else:
                    self._land(key)
        self._check_end()

    # ------------------------------------------------------------ members

    def _worker(self, spec: SimulatedInstance) -> SimulatedWorker:
        if spec.role is Role.PREFILL:
            return SimulatedPrefill(spec, self.cluster, self.gaps, checked=self._checked)
        return SimulatedDecode(
            spec,
            self.cluster,
            self.gaps,
            self._clients.output_tokens,
            checked=self._checked,
            tells_tokens=self._tells_tokens,
        )

    def _join(self) -> None:
        decodes = [spec for spec in self.cluster.instances if spec.role is Role.DECODE]
        for spec in self.cluster.instances:
            self._perform(self._lifecycle.handle(MemberJoined(self._registration(spec))))
        if not self.cluster.is_link_known:
            return
        link = self.cluster.link
        figures = (LinkFigures("simulated", link.bytes_per_s, link.latency_s),)
        for prefill in self.cluster.instances:
            if prefill.role is Role.PREFILL:
                for decode in decodes:
                    names = InstanceId(decode.name), GENERATION, InstanceId(prefill.name), GENERATION
                    self._lifecycle.handle(LinkMeasured(*names, figures))

    def _registration(self, spec: SimulatedInstance) -> Register:
        return Register(
            instance=InstanceId(spec.name),
            role=spec.role,
            generation=GENERATION,
            endpoints=(),
            layout=self.cluster.layout(spec),
            context_length=1 << 40,
            kv_capacity_tokens=spec.kv_tokens // spec.block_size * spec.block_size,
            max_batch=spec.max_batch,
            budget=spec.budget,
            costs=spec.costs,
            weight=spec.weight,
        )

    # ------------------------------------------------------------ events

    def _schedule_arrival(self) -> None:
        if self._next_arrival < len(self.records):
            self._push(self.records[self._next_arrival].arrived_at, Order.ARRIVAL)

    def _arrive(self) -> None:
        key = self._next_arrival
        self._next_arrival += 1
        self._schedule_arrival()
        self._hear_of_tokens()
        spec = self._clients.spec(key)
        self._handle(Arrived(self.now, spec, TransferId(spec.request), b""))

    def _hear_of_tokens(self) -> None:
        """Those of the steps in progress: no event tells them."""
        if not self._tells_tokens:
            return
        for worker in self.workers.values():
            if isinstance(worker, SimulatedDecode) and (message := worker.told_by(self.now)) is not None:
                self._handle(message)

    def _land(self, key: int) -> None:
        record = self.records[key]
        prefill, decode = self._pair(record)
        record.handed_over_at = self.now
        self._handle(decode.landed(key, self.now))
        prefill.taken(key, self.now)
        self._schedule(decode)
        self._schedule(prefill)

    def _advance(self, worker: SimulatedWorker) -> None:
        """Let a worker do what is due, and hear what comes of it."""
        report = worker.advance(self.now)
        self._schedule(worker)
        for key, at in report.first_tokens:
            self.records[key].first_token_at = at
        for key, at in report.finished:
            self.records[key].finished_at = at
            self._ended += 1
        if self._ended >= self._tell_at:
            self._tell()
        for key in report.ready:
            self._try_transfer(key)
        for released in report.released:
            self._handle(released)
        if report.refused:
            key, reason = report.refused[0]
            raise SimulationError(f"request {key} can never be served by {worker.spec.name!r}: {reason}")
        if report.message is not None:
            self._handle(report.message)

    def _tell(self) -> None:
        """Of the progress; and note when to do so again."""
        requests = len(self.records)
        if self._on_progress is not None:
            self._on_progress(self._ended / requests)
        self._tell_at = min(self._ended + self._stride, requests) if self._ended < requests else requests + 1

    def _pair(self, record: RequestRecord) -> tuple[SimulatedPrefill, SimulatedDecode]:
        """P and D of a request with a split."""
        assert record.prefill is not None
        assert record.decode is not None
        prefill, decode = self.workers[record.prefill], self.workers[record.decode]
        assert isinstance(prefill, SimulatedPrefill)
        assert isinstance(decode, SimulatedDecode)
        return prefill, decode

    def _try_transfer(self, key: int) -> None:
        prefill, decode = self._pair(self.records[key])
        reserved_at = decode.reserved_at(key)
        if reserved_at is None or not prefill.is_computed(key):
            return
        self._push(prefill.send(key, reserved_at), Order.LANDED, key=key)

    # ------------------------------------------------------------ the gateway

    def _handle(self, event: LifecycleEvent) -> None:
        self._perform(self._lifecycle.handle(event))
        if self._checked:
            self._lifecycle.check()

    def _perform(self, effects: list[LifecycleEffect]) -> None:
        touched: list[SimulatedWorker] = []
        for effect in effects:
            match effect:
                case Place(request, placement):
                    record = self.records[int(request)]
                    record.placed_at = self.now
                    record.prefill, record.decode, record.split = placement.prefill, placement.decode, placement.split
                    if placement.candidates:
                        record.predicted_first_token_s = placement.candidates[0].split.first_token_s
                case Send(instance, message):
                    worker = self.workers[instance]
                    assert isinstance(message, RunPrefill | RunDecode)
                    worker.run(message, self.now)
                    if worker not in touched:
                        touched.append(worker)
                case Fail(request, failure):
                    raise SimulationError(f"request {request} failed: {_words(failure)}")
                case _:
                    pass
        for worker in touched:
            self._schedule(worker)

    # ------------------------------------------------------------ time

    def _push(self, at: float, order: Order, worker: SimulatedWorker | None = None, key: int = -1) -> None:
        self._scheduled += 1
        heapq.heappush(self._heap, (at, order, self._scheduled, worker, key))

    def _schedule(self, worker: SimulatedWorker) -> None:
        at = worker.engine.next_event_at()
        wakes_at = _NEVER if at is None else at
        if wakes_at != worker.wakes_at:
            worker.wakes_at = wakes_at
            if at is not None:
                self._push(at, Order.STEP, worker)

    def _check_end(self) -> None:
        if self._ended < len(self.records):
            waits = next(index for index, record in enumerate(self.records) if record.finished_at is None)
            raise SimulationError(
                f"{len(self.records) - self._ended} requests never ended, request {waits} among them: "
                f"{self.records[waits]}"
            )
        if not self._lifecycle.is_idle():
            raise SimulationError(f"every request has ended, and the gateway still holds {self._lifecycle.holdings()}")
        for worker in self.workers.values():
            worker.check_end(self.now)


def _words(failure: Failure) -> str:
    return f"{failure.kind}: {failure.message}"
