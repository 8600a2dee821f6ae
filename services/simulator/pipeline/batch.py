"""Micro-batches: cores of a simulated engine that hold their blocks in one memory and take requests from one queue."""

from dataclasses import dataclass, field

import msgspec

from services.scheduling.continuous import BatchLimits, Phase, admit
from services.simulator.engine.checks import check_begin, check_end, check_limits
from services.simulator.engine.core import SimulatedCore
from services.simulator.engine.events import BlocksReserved, EngineEvent, GapRecorder, SimulationError
from services.simulator.engine.records import Batch, SimulatedSequence, StepInProgress
from services.simulator.engine.waiting_queue import WaitingQueue
from services.simulator.pipeline.line import StepWork


@dataclass(slots=True, eq=False)
class SharedBooks:
    """What the micro-batches of one instance have in common."""

    limits: BatchLimits
    """Of the instance, but for the budget: that is of one step, so of one micro-batch."""
    num_blocks: int
    used: int = 0
    waiting: WaitingQueue = field(default_factory=WaitingQueue)
    by_key: dict[int, SimulatedSequence] = field(default_factory=dict)
    batches: "list[MicroBatch]" = field(default_factory=list)

    @property
    def share(self) -> int:
        """Most sequences of one micro-batch: its part of max_sequences, rounded up."""
        return -(-self.limits.max_sequences // len(self.batches))

    def least_loaded(self, deciding: "MicroBatch") -> "MicroBatch":
        """Who gets the next request: of those below their share the one with the fewest tokens to compute, then with
        the fewest sequences; among equals the one that decides, whose step is next.

        While less than max_sequences are held, one is below its share.
        """
        below = [batch for batch in self.batches if len(batch.held) < self.share]
        return min(below, key=lambda batch: (batch.pending, len(batch.held), batch is not deciding))


class MicroBatch(SimulatedCore):
    """The sequences of one step of a pipeline. It adds itself to `books`.

    Its decisions are those of any core, of which three look beyond it: blocks are free when no micro-batch holds them;
    whoever decides admits for all, with the reserve for all that run; and a token is as old as the end of its step,
    which may be some time before the decision on the next.  Preemption stays within the micro-batch, for the others
    are being computed.
    """

    def __init__(self, books: SharedBooks, gaps: GapRecorder, events: list[EngineEvent]) -> None:
        self._books = books
        super().__init__(books.limits, books.num_blocks, gaps, events)
        self.waiting = books.waiting
        self.by_key = books.by_key
        self.held: set[int] = set()
        """Keys of its sequences: those that hold blocks."""
        self.step: StepInProgress | None = None
        self.ended_at = 0.0
        """When its last step had ended."""
        books.batches.append(self)

    @property
    def used(self) -> int:
        """Blocks held, by all micro-batches."""
        return self._books.used

    @used.setter
    def used(self, blocks: int) -> None:
        self._books.used = blocks

    @property
    def pending(self) -> int:
        """Tokens to compute until each sequence that runs has its next one."""
        return self.crowd.count + sum(sequence.pending for sequence in self.prompts)

    def work(self, batch: Batch) -> StepWork:
        """What the stages compute for `batch`."""
        contexts = [sequence.computed for sequence in batch.singles]
        decodes = self.crowd.count + len(contexts)
        return StepWork(
            chunks=tuple((count, sequence.computed) for sequence, count in batch.chunks),
            decodes=decodes,
            decode_context=self.crowd.context + sum(contexts),
            sampled=decodes + sum(count == sequence.pending for sequence, count in batch.chunks),
        )

    def complete(self, step: StepInProgress) -> None:
        """See SimulatedCore."""
        self.step = None
        self.ended_at = step.ends_at
        super().complete(step)

    def _preempt(self, now: float) -> list[SimulatedSequence]:  # noqa: ARG002 - the tokens came before that
        return super()._preempt(self.ended_at)

    def _admit(self, now: float) -> list[SimulatedSequence]:
        """Those admitted that are dealt to this micro-batch."""
        books = self._books
        holders = len(self.by_key) - len(self.waiting)
        running = sum(batch.crowd.count + len(batch.prompts) for batch in books.batches)
        mine: list[SimulatedSequence] = []
        for sequence in self.waiting.take(admit(self.waiting.known(), holders, running, self.free, self.limits)):
            self.used += self.limits.blocks_for(sequence.known)
            sequence.phase = Phase.RECEIVING
            batch = books.least_loaded(self)
            batch.held.add(sequence.key)
            if sequence.external or sequence.is_prefill:
                self._events.append(BlocksReserved(sequence.key, now))
            if not sequence.external:
                batch._run([sequence])
            if batch is self:
                mine.append(sequence)
        return mine

    def _release(self, sequence: SimulatedSequence) -> None:
        super()._release(sequence)
        self.held.discard(sequence.key)

    def _finish(self, sequence: SimulatedSequence, at: float) -> None:
        super()._finish(sequence, at)
        self.held.discard(sequence.key)


def check_bounds(limits: BatchLimits, num_blocks: int, micro_batches: int) -> None:
    """As engine_checks.check_limits, where a step has the decodes of one micro-batch."""
    if micro_batches < 1:
        raise SimulationError(f"a pipeline of {micro_batches} micro-batches; give 1 or more")
    check_limits(msgspec.structs.replace(limits, budget=None), num_blocks)
    share = -(-limits.max_sequences // micro_batches)
    if limits.budget is not None and limits.budget < share:
        raise SimulationError(
            f"a budget of {limits.budget} tokens per step of a micro-batch that may hold {share} of max_sequences "
            f"{limits.max_sequences}: each decode takes one token; raise budget or lower max_sequences"
        )


def check_books(books: SharedBooks) -> None:
    """Blocks are neither lost nor made, every holder is in one micro-batch, and idle ones hold nothing."""
    for batch in books.batches:
        check_end(batch)
        if not batch.held and (batch.prompts or not batch.crowd.is_clear()):
            raise SimulationError(
                f"a micro-batch without sequences has {len(batch.prompts)} prompts and {batch.crowd.count} decodes"
            )
    held, holders = sum(len(batch.held) for batch in books.batches), len(books.by_key) - len(books.waiting)
    if held != holders:
        raise SimulationError(f"the micro-batches hold {held} sequences, and {holders} have blocks")


def check_arranged(books: SharedBooks, batch: MicroBatch, arranged: Batch) -> None:
    """A decision keeps the budget, the blocks, max_sequences and each micro-batch's share of it."""
    check_begin(batch, arranged)
    most = max(len(other.held) for other in books.batches)
    if most > books.share:
        raise SimulationError(f"a micro-batch holds {most} sequences; its share of max_sequences is {books.share}")
