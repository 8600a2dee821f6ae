"""One instance that spans several devices: its layers are split among them, and micro-batches keep them busy.

It stands where a SimulatedEngine does.  This half keeps the clock; pipeline_batch decides, with the decisions of the
live engine, and pipeline_line says how long a step is on its way.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

from services.scheduling.continuous import BatchLimits
from services.simulator.engine.decode_run import DecodeRun
from services.simulator.engine.events import EngineEvent, GapRecorder, IgnoredGaps, SimulatedLoad, SimulationError
from services.simulator.engine.records import Batch, EngineCounters, StepInProgress
from services.simulator.engine.timing import StepTimer
from services.simulator.pipeline.batch import MicroBatch, SharedBooks, check_arranged, check_books, check_bounds
from services.simulator.pipeline.line import PipelineLine, PipelineSpec


class PipelineEngine:
    """An instance over the stages `first`, then `spec.later`; times are as SimulatedEngine's.

    A request is dealt to a micro-batch when it gets its blocks, and stays there until it ends or is preempted.  The
    next step of a micro-batch is decided when the first stage takes it, at the earliest when the last one has ended,
    for the tokens sampled there are its inputs.  Commands are taken when a step ends or the first stage is free.
    """

    def __init__(
        self,
        limits: BatchLimits,
        num_blocks: int,
        first: StepTimer,
        spec: PipelineSpec,
        *,
        gaps: GapRecorder | None = None,
        checked: bool = False,
    ) -> None:
        """`limits` and `num_blocks` are the instance's, but for the budget: it is of each micro-batch's step."""
        check_bounds(limits, num_blocks, spec.micro_batches)
        self._events: list[EngineEvent] = []
        self._books = SharedBooks(limits, num_blocks)
        for _ in range(spec.micro_batches):
            MicroBatch(self._books, gaps or IgnoredGaps(), self._events)
        self._line = PipelineLine((first, *spec.later), spec.link, spec.bytes_per_token)
        self._checked = checked
        self._now = 0.0
        self._in_flight: deque[MicroBatch] = deque()
        """Those with a step, in the order in which these end."""
        self._commands: list[Callable[[], None]] = []
        self._wakes_at: float | None = None
        """When to take commands, or a step of a micro-batch that waits for the first stage."""
        self._busy_s = 0.0
        self._busy_until = 0.0

    @property
    def counters(self) -> EngineCounters:
        """Totals so far, of steps that have ended; `busy_s` is the time in which any was on its way."""
        parts = [batch.counters for batch in self._books.batches]
        return EngineCounters(
            steps=sum(part.steps for part in parts),
            mixed_steps=sum(part.mixed_steps for part in parts),
            busy_s=self._busy_s,
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            output_tokens=sum(part.output_tokens for part in parts),
            preemptions=sum(part.preemptions for part in parts),
        )

    @property
    def stage_busy_s(self) -> tuple[float, ...]:
        """Seconds in which each stage computes, of steps that have entered."""
        return self._line.busy_s

    # ------------------------------------------------------------ commands

    def submit_decode(self, key: int, prompt_tokens: int, split: int, output_tokens: int, now: float) -> None:
        """See SimulatedEngine."""
        if prompt_tokens < 1 or output_tokens < 1 or not 0 <= split < prompt_tokens:
            raise SimulationError(
                f"job {key}: {prompt_tokens} prompt and {output_tokens} output tokens, split {split}; give at least "
                "one of each, and a split in [0, prompt tokens - 1]"
            )
        self._command(now, partial(self._accept, key, prompt_tokens, output_tokens, split))

    def submit_prefill(self, key: int, tokens: int, now: float) -> None:
        """See SimulatedEngine; prompts of different micro-batches are in the pipeline at once."""
        if tokens < 1:
            raise SimulationError(f"job {key}: a prefill of {tokens} tokens; give at least 1")
        self._command(now, partial(self._accept, key, tokens, 0, 0))

    def kv_landed(self, key: int, now: float) -> None:
        """See SimulatedEngine."""
        self._command(now, partial(self._land, key))

    def end(self, key: int, now: float) -> None:
        """See SimulatedEngine; a sequence whose micro-batch is being computed goes when that step has ended."""
        self._command(now, partial(self._end, key))

    # ------------------------------------------------------------ time

    def next_event_at(self) -> float | None:
        """See SimulatedEngine."""
        if not self._in_flight:
            return self._wakes_at
        ends_at = _step_of(self._in_flight[0]).ends_at
        return ends_at if self._wakes_at is None else min(ends_at, self._wakes_at)

    def advance(self, now: float) -> list[EngineEvent]:
        """Complete what ends by `now`, take the commands, begin what can; the events of all this, in order."""
        while (at := self.next_event_at()) is not None and at <= now:
            self._now = at
            while self._in_flight and _step_of(self._in_flight[0]).ends_at <= at:
                self._complete(self._in_flight.popleft())
            self._take_commands()
            if self._checked:
                check_books(self._books)
            self._begin()
        events = self._events.copy()
        self._events.clear()
        return events

    def emitted(self, now: float) -> list[tuple[int, int]]:  # noqa: ARG002 - as SimulatedEngine's
        """See SimulatedEngine."""
        return [(key, tokens) for batch in self._books.batches for key, tokens in batch.emitted(0) if key in batch.held]

    def load(self, now: float) -> SimulatedLoad:  # noqa: ARG002 - as SimulatedEngine's; a step is not a run here
        """See SimulatedEngine; the steps on their way have taken their blocks and computed nothing yet."""
        books = self._books
        prompts = [sequence for batch in books.batches for sequence in batch.prompts]
        singles = [sequence for sequence in prompts if sequence.pending == 1]
        decodes = sum(batch.crowd.count for batch in books.batches)
        context = sum(batch.crowd.context for batch in books.batches)
        return SimulatedLoad(
            waiting=len(books.waiting),
            running=len(books.by_key) - len(books.waiting),
            queued_tokens=books.waiting.tokens + sum(s.pending for s in prompts) - len(singles),
            context_tokens=context + decodes + sum(s.known for s in singles),
            blocks_used=books.used,
            blocks_total=books.num_blocks,
            steps=sum(batch.counters.steps for batch in books.batches),
            decodes=decodes + len(singles),
            partial_tokens=sum(s.partial for s in prompts),
        )

    def _command(self, now: float, perform: Callable[[], None]) -> None:
        due = self.next_event_at()
        if now < self._now or (due is not None and due < now):
            raise SimulationError(
                f"a command at {now!r} s to an engine that stands at {self._now!r} s and is due at {due!r} s: advance "
                "it to that first, and never go back in time"
            )
        self._commands.append(perform)
        self._wakes_at = max(now, self._line.free_at)

    def _accept(self, key: int, prompt: int, output: int, split: int) -> None:
        # One numbers the jobs of all: the order of arrival decides who is preempted.
        self._books.batches[0].accept(key, prompt, output, split, self._now)

    def _land(self, key: int) -> None:
        holder = self._holder(key)
        if holder is not None:
            holder.land(key)

    def _end(self, key: int) -> None:
        holder = self._holder(key)
        if holder is None:
            self._books.batches[0].end(key)
        elif holder.step is None:
            holder.end(key)
        else:
            self._commands.append(partial(self._end, key))

    def _holder(self, key: int) -> MicroBatch | None:
        return next((batch for batch in self._books.batches if key in batch.held), None)

    def _take_commands(self) -> None:
        commands, self._commands = self._commands, []
        for perform in commands:
            perform()

    # ------------------------------------------------------------ steps

    def _begin(self) -> None:
        """Begin what the first stage takes now, after decisions that compute nothing (they take no time)."""
        while self._line.free_at <= self._now and self._decide():
            pass
        waits = any(batch.held for batch in self._idle())
        self._wakes_at = self._line.free_at if waits and self._line.free_at > self._now else None

    def _decide(self) -> bool:
        """Ask the micro-batches without a step, in turn, until one has something to compute; whether anything changed.

        Those with sequences come first, by the end of their last step; the others wait for work, not for the stage.
        """
        changed = False
        for batch in sorted(self._idle(), key=lambda batch: (not batch.held, batch.ended_at)):
            waiting = len(self._books.waiting)
            arranged = batch.arrange(self._now)
            if self._checked:
                check_arranged(self._books, batch, arranged)
            if batch.crowd.count or arranged.singles or arranged.chunks:
                self._launch(batch, arranged)
                return True
            changed = changed or len(self._books.waiting) != waiting
        return changed

    def _idle(self) -> list[MicroBatch]:
        return [batch for batch in self._books.batches if batch.step is None]

    def _launch(self, batch: MicroBatch, arranged: Batch) -> None:
        ends_at = self._line.enter(batch.work(arranged), self._now)
        # The gap between tokens: from the end of the step before, with the wait for the first stage.
        run = DecodeRun(ends_at - batch.ended_at, 0.0, 1)
        batch.step = StepInProgress(self._now, ends_at, run, arranged)
        self._in_flight.append(batch)

    def _complete(self, batch: MicroBatch) -> None:
        step = _step_of(batch)
        batch.complete(step)
        # They end in the order in which they began.
        self._busy_s += step.ends_at - max(step.began, self._busy_until)
        self._busy_until = step.ends_at


def _step_of(batch: MicroBatch) -> StepInProgress:
    assert batch.step is not None
    return batch.step
