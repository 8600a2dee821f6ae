"""The engine without its thread: jobs in, steps, events out.

Each step asks services.scheduling.continuous what to do and performs it on the block pool and the runner.  The core
owns every block reference; blocks change hands only through the methods below, all called by one thread.
"""

import itertools
import logging
from collections.abc import Callable

from common.costs.step import Step
from common.errors import Failure, FailureKind, GrammarRefused
from common.ids import RequestId
from common.kv.prefix import PrefixKeys, root_key
from services.engine.api import (
    BlocksReserved,
    ChoiceTokens,
    ComputingBegan,
    DecodeJob,
    EngineEvent,
    EngineLoad,
    Job,
    JobEnded,
    LayerReady,
    PrefillComputed,
    PrefillFailed,
    PrefillJob,
    PrefixesChanged,
    PrefixFound,
    TokensSampled,
)
from services.engine.kv.pool import BlockPool
from services.engine.kv.prefix_cache import PrefixCache, PrefixChanges
from services.engine.load import load_of
from services.engine.measuring.measure import MeasurementRefused, StepMeter, Timed
from services.engine.runner import Runner, Sampled, StepItem
from services.engine.sequence import Sequence, step_of
from services.engine.servable import unservable
from services.scheduling.continuous import BatchLimits, Phase, SequenceView, StepPlan, Work, decide

_log = logging.getLogger(__name__)


class EngineCore:
    """One model, its block pool and the sequences on it.

    `emit` receives every event, on the calling thread, in order.  For each request submitted exactly one JobEnded
    comes, and it is the last event about it.
    """

    def __init__(
        self,
        runner: Runner,
        limits: BatchLimits,
        emit: Callable[[EngineEvent], None],
        *,
        prefix_cache: bool = True,
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._emit = emit
        self._news = PrefixChanges()
        self._pool = BlockPool(runner.num_blocks, self._news.note)
        self._prefixes = PrefixCache(self._pool, limits.block_size, is_on=prefix_cache)
        self._root = root_key(runner.layout.model, limits.block_size)
        self._keys = itertools.count()
        self._sequences: dict[int, Sequence] = {}
        """In order of arrival, as the decision wants them."""
        self._by_request: dict[RequestId, list[int]] = {}
        self._steps = self._tokens = 0
        self.computed: Step | None = None
        """What the last step computed; None where that was nothing, or failed."""

    # ------------------------------------------------------------ commands

    def submit(self, job: Job) -> None:
        """Accept a job, or end it at once with the reason why this engine can never serve it.

        A job for a request that is here already is a fault of the caller and changes nothing: an event about it would
        be taken for one about the first.
        """
        if job.request in self._by_request:
            _log.error("request %s was submitted again while it is here", job.request)
            return
        if (reason := unservable(job, self._runner, self._pool.num_blocks)) is not None:
            self._emit(JobEnded(job.request, _invalid(reason)))
            return
        choices = tuple(range(job.choices)) if isinstance(job, DecodeJob) else ()
        external = job.split if isinstance(job, DecodeJob) else 0
        guide = job.grammar.guide() if isinstance(job, DecodeJob) and job.grammar is not None else None
        key = next(self._keys)
        keys = PrefixKeys(self._root, self._limits.block_size)
        self._add(Sequence(key, job, choices, keys, external=external, arrival=key, guide=guide))

    def kv_landed(self, request: RequestId) -> None:
        """The KV of [0, split) is in the blocks of this decode job: go on from there. Unknown requests: no effect."""
        for sequence in self._of(request):
            if sequence.phase is Phase.RECEIVING:
                sequence.computed, sequence.external = sequence.external, 0
                sequence.phase = Phase.RUNNING
                self._prefixes.remember(sequence)
        self._tell_news()

    def end(self, request: RequestId) -> None:
        """Drop the job and free its blocks, finished or not. Nobody else may be reading or writing them any more.

        This releases a computed prefill job, aborts any job, and does nothing for one that is unknown.
        """
        if request in self._by_request:
            self._end(request, None)

    def measure(self, step: Step, repeats: int, timed: Timed, interrupted: Callable[[], bool]) -> tuple[float, ...]:
        """See StepMeter. Raises MeasurementRefused, too, while any job is here."""
        if self._by_request:
            raise MeasurementRefused(f"the instance serves {len(self._by_request)} requests; measure when it idles")
        return StepMeter(self._runner, self._pool, timed, interrupted).seconds(step, repeats)

    # ------------------------------------------------------------ steps

    def has_work(self) -> bool:
        """Whether a step could do anything now."""
        return any(s.phase in (Phase.WAITING, Phase.RUNNING) for s in self._sequences.values())

    def step(self) -> bool:
        """Decide and perform one step; False when it changed nothing, as the next one would until a command comes."""
        plan = decide(self._views(), self._pool.num_free, self._limits)
        self._arrange(plan)
        self.computed = None
        if plan.work:
            self._steps += 1
            self._compute(plan.work)
        self._tell_news()
        return bool(plan.work or plan.admit or plan.preempt)

    def _views(self) -> list[SequenceView]:
        """All that hold blocks, and no more of those that wait than there are slots: they may be hundreds."""
        waiting = Phase.WAITING
        slots = self._limits.max_sequences - sum(s.phase is not waiting for s in self._sequences.values())
        # With a free block for each nobody is preempted, and what that would free is not asked.
        is_shared = self._pool.is_shared if self._pool.num_free < len(self._sequences) else None
        views: list[SequenceView] = []
        for sequence in self._sequences.values():
            if sequence.phase is waiting:
                slots -= 1
                if slots >= 0:
                    found = self._prefixes.find(sequence)
                    shared = sum(not self._pool.is_free(block) for block in found)
                    views.append(sequence.waiting_view(len(found), shared, self._limits.block_size))
            else:
                views.append(sequence.view(is_shared))
        return views

    def _arrange(self, plan: StepPlan) -> None:
        for key in plan.preempt:
            self._preempt(self._sequences[key])
        admitted = [self._sequences[key] for key in plan.admit]
        for sequence in admitted:
            # All of them, before any allocates: else one would be given a block that another counts on.
            self._reuse(sequence)
        for sequence in admitted:
            self._admit(sequence)
        for key in plan.grow:
            self._sequences[key].blocks += self._pool.allocate(1)

    def _preempt(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.named = sequence.reused = 0
        sequence.phase = Phase.WAITING

    def _reuse(self, sequence: Sequence) -> None:
        found = self._prefixes.find(sequence)
        self._pool.share(found)
        sequence.blocks = found
        sequence.named = len(found)
        sequence.computed = sequence.reused = len(found) * self._limits.block_size

    def _admit(self, sequence: Sequence) -> None:
        sequence.blocks += self._pool.allocate(self._limits.blocks_for(sequence.known) - sequence.named)
        if sequence.external <= sequence.reused:
            sequence.external = 0
        sequence.phase = Phase.RECEIVING if sequence.external else Phase.RUNNING
        request = sequence.job.request
        if sequence.is_new and sequence.reused:
            self._emit(PrefixFound(request, sequence.reused))
        sequence.is_new = False
        is_prefill = isinstance(sequence.job, PrefillJob)
        if sequence.external or is_prefill:
            self._emit(BlocksReserved(request, tuple(sequence.blocks), sequence.reused))
        if is_prefill and sequence.computed == sequence.known:
            layers = self._runner.layout.layers
            for layer in range(layers.start, layers.stop):
                self._emit(LayerReady(request, layer, sequence.computed))
            self._hold(sequence)

    def _hold(self, sequence: Sequence) -> None:
        """A prefill job is computed."""
        sequence.phase = Phase.HOLDING
        self._emit(PrefillComputed(sequence.job.request))

    def _compute(self, work: tuple[Work, ...]) -> None:
        batch, items = self._batch_of(work)
        if not batch:
            return
        self._tell_begun(batch)
        prefills = [
            (sequence.job.request, sequence.computed + count)
            for sequence, count in batch
            if isinstance(sequence.job, PrefillJob)
        ]

        def layer_ready(layer: int) -> None:
            for request, token_stop in prefills:
                self._emit(LayerReady(request, layer, token_stop))

        try:
            results = self._runner.run(items, layer_ready if prefills else None)
        except Exception as error:  # the device's own errors are of any type; the jobs of this step end with them
            self._fail([sequence for sequence, _ in batch], f"{type(error).__name__}: {error}")
            return
        self.computed = step_of(batch)
        self._tokens += sum(count for _, count in batch)
        sampled: list[ChoiceTokens] = []
        for (sequence, count), tokens in zip(batch, results, strict=True):
            self._advance(sequence, count, tokens, sampled)
        if sampled:
            self._emit(TokensSampled(tuple(sampled)))
        self._end_finished(sampled)

    def _batch_of(self, work: tuple[Work, ...]) -> tuple[list[tuple[Sequence, int]], list[StepItem]]:
        """What the step computes. A request whose grammar cannot be followed further ends here, and it alone."""
        entries: list[tuple[Sequence, int, StepItem]] = []
        for key, count in ((item.key, item.count) for item in work):
            # Not there: another choice of its request has just ended it.
            if (sequence := self._sequences.get(key)) is None:
                continue
            try:
                entries.append((sequence, count, sequence.item(count)))
            except GrammarRefused as error:
                self._end(sequence.job.request, _invalid(f"the grammar of this answer: {error}"))
        entries = [entry for entry in entries if entry[0].key in self._sequences]
        return [(sequence, count) for sequence, count, _ in entries], [item for _, _, item in entries]

    def _tell_begun(self, batch: list[tuple[Sequence, int]]) -> None:
        for sequence, _ in batch:
            if not sequence.has_begun:
                sequence.has_begun = True
                self._emit(ComputingBegan(sequence.job.request))

    def _advance(
        self, sequence: Sequence, count: int, tokens: tuple[Sampled, ...], sampled: list[ChoiceTokens]
    ) -> None:
        tokens = sequence.keep_scores(count, tokens)
        sequence.computed += count
        self._prefixes.remember(sequence)
        if isinstance(sequence.job, PrefillJob):
            if sequence.computed == sequence.known:
                self._hold(sequence)
            return
        if not tokens:
            return
        branches = [sequence, *self._fork_all(sequence)]
        sequence.choices = sequence.choices[:1]
        for branch, token in zip(branches, tokens, strict=True):
            sampled.append(branch.emit(token))

    def _fork_all(self, parent: Sequence) -> list[Sequence]:
        """A sequence for each choice but the first; they take their parent's place among those that came later."""
        children = [self._fork(parent, choice) for choice in parent.choices[1:]]
        if children:
            by_arrival = sorted(self._sequences.items(), key=lambda item: (item[1].arrival, item[0]))
            self._sequences = dict(by_arrival)
        return children

    def _fork(self, parent: Sequence, choice: int) -> Sequence:
        """A sequence for another choice. It shares the parent's full blocks and copies the one still being filled;
        without room for that it starts over from its tokens, as after a preemption.
        """
        child = parent.fork(next(self._keys), choice)
        self._add(child)
        full, partly = divmod(parent.computed, self._limits.block_size)
        holders = sum(s.phase is not Phase.WAITING for s in self._sequences.values())
        if holders < self._limits.max_sequences and self._pool.num_free >= (partly > 0):
            own = self._pool.allocate(1) if partly else []
            if own:
                self._runner.copy_block(parent.blocks[full], own[0])
            self._pool.share(parent.blocks[:full])
            child.blocks = parent.blocks[:full] + own
            child.computed = parent.computed
            child.named = min(parent.named, full)
            child.phase = Phase.RUNNING
        return child

    # ------------------------------------------------------------ endings

    def _end_finished(self, sampled: list[ChoiceTokens]) -> None:
        for item in sampled:
            if item.finish is None:
                continue
            for sequence in self._of(item.request):
                if sequence.choices == (item.choice,):
                    self._remove(sequence)
            if not self._by_request[item.request]:
                self._end(item.request, None)

    def _fail(self, sequences: list[Sequence], reason: str) -> None:
        failure = Failure(FailureKind.ENGINE_FAILED, f"the forward pass failed: {reason}")
        for request in dict.fromkeys(sequence.job.request for sequence in sequences):
            members = self._of(request)
            if isinstance(members[0].job, PrefillJob):
                members[0].phase = Phase.HOLDING
                self._emit(PrefillFailed(request, failure))
            else:
                self._end(request, failure)

    def _end(self, request: RequestId, failure: Failure | None) -> None:
        for sequence in self._of(request):
            self._remove(sequence)
        del self._by_request[request]
        self._emit(JobEnded(request, failure))

    # ------------------------------------------------------------ records

    def _add(self, sequence: Sequence) -> None:
        self._sequences[sequence.key] = sequence
        self._by_request.setdefault(sequence.job.request, []).append(sequence.key)

    def _remove(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        del self._sequences[sequence.key]
        self._by_request[sequence.job.request].remove(sequence.key)

    def _of(self, request: RequestId) -> list[Sequence]:
        return [self._sequences[key] for key in self._by_request.get(request, ())]

    def load(self) -> EngineLoad:
        """What the engine holds now."""
        return load_of(self._sequences.values(), self._pool, self._steps, self._tokens)

    def _tell_news(self) -> None:
        if (news := self._news.take()) is not None:
            self._emit(PrefixesChanged(news))

    def check_integrity(self) -> None:
        """Raise BlockError unless every block reference belongs to a sequence."""
        self._pool.check_integrity([s.blocks for s in self._sequences.values()])


def _invalid(reason: str) -> Failure:
    return Failure(FailureKind.INVALID_REQUEST, reason)
