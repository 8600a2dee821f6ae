"""Simulated workers: an engine each, and what services.prefill and services.decode do around one."""

from collections.abc import Callable
from dataclasses import dataclass, field

from common.ids import Generation, InstanceId, RequestId
from common.kv import ownership
from common.kv.wire import wire_token_bytes
from common.messages.control import (
    DecodeProgress,
    EmittedTokens,
    FinishReason,
    KVLanded,
    PrefillReleased,
    RunDecode,
    RunPrefill,
    TokensEmitted,
)
from services.scheduling.continuous import BatchLimits
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.engine.engine import SimulatedEngine
from services.simulator.engine.events import (
    BlocksReserved,
    Finished,
    FirstToken,
    GapRecorder,
    PrefillAdvanced,
    PrefillComputed,
    Refused,
    SimulationError,
)
from services.simulator.links import SimulatedLink
from services.simulator.pipeline.pipeline import PipelineEngine

_GENERATION = Generation(1)
_NEVER = float("inf")
_TELL_STEPS = 16
"""How many steps a decode instance makes before it tells all tokens anew, where they are asked for."""
_TAKER = ownership.TakerAccepted()
_READ = ownership.ReadBegan()
_READ_ENDED = ownership.ReadEnded()


@dataclass(slots=True)
class WorkerReport:
    """What came of letting a worker advance."""

    first_tokens: list[tuple[int, float]] = field(default_factory=list)
    finished: list[tuple[int, float]] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    """Hand-offs of which this side is ready."""
    refused: list[tuple[int, str]] = field(default_factory=list)
    released: list[PrefillReleased] = field(default_factory=list)
    message: TokensEmitted | None = None


class SimulatedWorker:
    """One instance in one life. `wakes_at` is when its next step ends; the loop keeps it."""

    def __init__(
        self, spec: SimulatedInstance, cluster: Cluster, gaps: GapRecorder, limits: BatchLimits, *, checked: bool
    ) -> None:
        self.spec = spec
        self.name = InstanceId(spec.name)
        self.cluster = cluster
        self.wakes_at = _NEVER
        self.engine = _engine(spec, limits, gaps, checked=checked)

    def run(self, message: RunPrefill | RunDecode, now: float) -> None:
        """A job from the gateway."""
        raise NotImplementedError

    def advance(self, now: float) -> WorkerReport:
        """Do what is due at `now`, which is when the engine's next event is."""
        raise NotImplementedError

    def check_end(self, now: float) -> None:
        """Raise SimulationError where something is still held."""
        load = self.engine.load(now)
        if load.blocks_used or load.waiting or load.running:
            raise SimulationError(f"instance {self.name!r} still holds something after the last request: {load}")


def _engine(
    spec: SimulatedInstance, limits: BatchLimits, gaps: GapRecorder, *, checked: bool
) -> SimulatedEngine | PipelineEngine:
    blocks = spec.kv_tokens // spec.block_size
    if spec.pipeline is not None:
        return PipelineEngine(limits, blocks, spec.timer, spec.pipeline, gaps=gaps, checked=checked)
    return SimulatedEngine(limits, blocks, spec.timer, gaps=gaps, checked=checked)


@dataclass(slots=True)
class _Offer:
    tokens: int
    state: ownership.Handoff = field(default_factory=ownership.Handoff)
    first_at: float = 0.0
    """When the first layer of the first chunk was computed."""
    last_tokens: int = 0
    """Tokens of the last chunk computed."""
    computed_at: float | None = None


class SimulatedPrefill(SimulatedWorker):
    """Computes first parts of prompts and holds them until they are taken."""

    def __init__(self, spec: SimulatedInstance, cluster: Cluster, gaps: GapRecorder, *, checked: bool) -> None:
        limits = BatchLimits(
            block_size=spec.block_size, max_sequences=spec.max_batch, chunk=spec.budget, prompts_per_step=1
        )
        super().__init__(spec, cluster, gaps, limits, checked=checked)
        self.link = SimulatedLink(cluster.link)
        self._offers: dict[int, _Offer] = {}
        self._ending: list[int] = []
        """Handed over; the engine has not yet taken the command to forget them."""
        layout = cluster.layout(spec)
        self._token_bytes = wire_token_bytes(layout, layout)

    def run(self, message: RunPrefill | RunDecode, now: float) -> None:
        """See SimulatedWorker."""
        key = int(message.request)
        self._offers[key] = _Offer(len(message.prompt))
        self.engine.submit_prefill(key, len(message.prompt), now)

    def advance(self, now: float) -> WorkerReport:
        """See SimulatedWorker."""
        report = WorkerReport()
        for event in self.engine.advance(now):
            match event:
                case PrefillAdvanced():
                    self._advanced(event)
                case PrefillComputed(key=key, at=at):
                    self._offers[key].computed_at = at
                    report.ready.append(key)
                case Refused(key=key, reason=reason):
                    report.refused.append((key, reason))
                case _:
                    pass
        report.released = [PrefillReleased(self.name, _GENERATION, RequestId(str(key))) for key in self._ending]
        self._ending.clear()
        return report

    def is_computed(self, key: int) -> bool:
        """Whether all KV of a hand-off is there."""
        return self._offers[key].computed_at is not None

    def send(self, key: int, reserved_at: float) -> float:
        """When the KV of a computed job has arrived at a D that had room for it at `reserved_at`.

        Asked when both sides are ready, the later of them now.  What left before, layer by layer as it was computed, is
        reckoned after the fact, so a hand-off whose D is not ready holds the link up for nobody.  One that became ready
        meanwhile has the link first, where the first layers of this one would have been on it in part.
        """
        offer = self._offers[key]
        for event in (_TAKER, _READ):
            offer.state, _ = ownership.step(offer.state, event)
        assert offer.computed_at is not None
        num_bytes = offer.tokens * self._token_bytes
        last_bytes = offer.last_tokens * self._token_bytes // self.cluster.layers
        return self.link.transfer(num_bytes, max(offer.first_at, reserved_at), offer.computed_at, last_bytes)

    def taken(self, key: int, now: float) -> None:
        """D has everything.

        As at the live P, the slot is free when the engine has taken the command to free the blocks: after the step in
        progress.
        """
        offer = self._offers.pop(key)
        end = ownership.Ended(ownership.Acknowledged(offer.tokens * self._token_bytes))
        state, _ = ownership.step(offer.state, _READ_ENDED)
        _, release = ownership.step(state, end)
        assert release is not None
        self.engine.end(key, now)
        self._ending.append(key)

    def check_end(self, now: float) -> None:
        """See SimulatedWorker."""
        super().check_end(now)
        if self._offers or self._ending:
            raise SimulationError(f"instance {self.name!r} still offers {[*self._offers, *self._ending]} at the end")

    def _advanced(self, event: PrefillAdvanced) -> None:
        offer = self._offers[event.key]
        if event.start == 0:
            offer.first_at = event.began + (event.at - event.began) / self.cluster.layers
        offer.last_tokens = event.stop - event.start


class SimulatedDecode(SimulatedWorker):
    """Takes over first parts, computes the rest and decodes.

    `output_tokens` says how long an answer is, whatever its max_tokens, which is no less.  With `tells_tokens` those of
    running answers are told every few steps, else the first and, at the end, the others: that is quicker.
    """

    def __init__(
        self,
        spec: SimulatedInstance,
        cluster: Cluster,
        gaps: GapRecorder,
        output_tokens: Callable[[int], int],
        *,
        checked: bool,
        tells_tokens: bool = False,
    ) -> None:
        limits = BatchLimits(block_size=spec.block_size, max_sequences=spec.max_batch, budget=spec.budget)
        super().__init__(spec, cluster, gaps, limits, checked=checked)
        self._output_tokens = output_tokens
        self._tells_tokens = tells_tokens
        self._jobs: dict[int, RunDecode] = {}
        self._told: dict[int, int] = {}
        """Tokens told of each job."""
        self._told_at_step = 0
        self._reserved: dict[int, float] = {}

    def run(self, message: RunPrefill | RunDecode, now: float) -> None:
        """See SimulatedWorker."""
        assert isinstance(message, RunDecode)
        key = int(message.request)
        self._jobs[key] = message
        self.engine.submit_decode(key, len(message.prompt), message.split, self._output_tokens(key), now)

    def advance(self, now: float) -> WorkerReport:
        """See SimulatedWorker."""
        report = WorkerReport()
        items: list[EmittedTokens] = []
        for event in self.engine.advance(now):
            match event:
                case FirstToken(key=key, at=at):
                    report.first_tokens.append((key, at))
                    self._told[key] = 1
                    items.append(_tokens(key, 0, 1))
                case Finished(key=key, at=at):
                    report.finished.append((key, at))
                    items.append(self._last(key))
                case BlocksReserved(key=key, at=at):
                    if self._jobs[key].split and key not in self._reserved:
                        self._reserved[key] = at
                        report.ready.append(key)
                case Refused(key=key, reason=reason):
                    report.refused.append((key, reason))
                case _:
                    pass
        if items:
            items += self._news(now)
            report.message = TokensEmitted(self.name, _GENERATION, tuple(items), self._progress(now))
        return report

    def told_by(self, now: float) -> TokensEmitted | None:
        """Tokens that came by `now`, between two events, if there are news."""
        items = self._news(now)
        return TokensEmitted(self.name, _GENERATION, tuple(items), self._progress(now)) if items else None

    def reserved_at(self, key: int) -> float | None:
        """When the job got its blocks; None: not yet."""
        return self._reserved.get(key)

    def landed(self, key: int, now: float) -> KVLanded:
        """All KV of a hand-off is here."""
        self._reserved.pop(key)
        self.engine.kv_landed(key, now)
        return KVLanded(self.name, _GENERATION, RequestId(str(key)), 0, 0.0, "simulated", "nobody")

    def check_end(self, now: float) -> None:
        """See SimulatedWorker."""
        super().check_end(now)
        if self._jobs or self._reserved:
            raise SimulationError(f"instance {self.name!r} still has jobs {[*self._jobs]} at the end")

    def _last(self, key: int) -> EmittedTokens:
        """All tokens not told yet; with the last one at least."""
        output, most = self._output_tokens(key), self._jobs.pop(key).max_tokens
        first = min(self._told.pop(key), output - 1)
        return _tokens(key, first, output, FinishReason.LENGTH if output == most else FinishReason.STOP)

    def _news(self, now: float) -> list[EmittedTokens]:
        """Of every answer that goes on, the tokens not told yet; none within a few steps of the last time."""
        if not self._tells_tokens or (steps := self.engine.load(now).steps) < self._told_at_step + _TELL_STEPS:
            return []
        self._told_at_step = steps
        items: list[EmittedTokens] = []
        for key, emitted in self.engine.emitted(now):
            if emitted > self._told[key]:
                items.append(_tokens(key, self._told[key], emitted))
                self._told[key] = emitted
        return items

    def _progress(self, now: float) -> DecodeProgress:
        """Told with tokens: a step without a first or a last one need not be an event.

        So the contexts that the gateway knows of are some steps old, by well below 1 % where many sequences decode.
        """
        load = self.engine.load(now)
        return DecodeProgress(load.context_tokens, load.partial_tokens)


def _tokens(key: int, first: int, stop: int, finish: FinishReason | None = None) -> EmittedTokens:
    """Tokens [first, stop) of the one choice of a request."""
    return EmittedTokens(RequestId(str(key)), 0, first, (0,) * (stop - first), finish)
