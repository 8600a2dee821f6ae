"""An engine without tokens, torch or threads: what services.engine does with the same jobs, in predicted time.

This half keeps the clock, engine_core decides.  Steps of decodes alone are made in one go until something can change: a
sequence finishes, blocks run out, a command comes.

The caller advances the engine to `next_event_at()`, which may change with every call, before it gives a command of a
later time.  As in the live engine's thread commands are taken between two steps; one that comes at the very end of a
step, before the engine is advanced to it, is taken there.
"""

from collections.abc import Callable
from functools import partial

from services.scheduling.continuous import BatchLimits, StepPlan
from services.simulator.engine.checks import check_begin, check_end, check_limits, check_seconds
from services.simulator.engine.core import SimulatedCore
from services.simulator.engine.decode_run import DecodeRun
from services.simulator.engine.events import EngineEvent, GapRecorder, IgnoredGaps, SimulatedLoad, SimulationError
from services.simulator.engine.plan import step_plan
from services.simulator.engine.records import Batch, EngineCounters, StepInProgress
from services.simulator.engine.timing import StepTimer


class SimulatedEngine:
    """One instance. Every time is in seconds, and none may be before one given earlier.

    `gaps` takes the gaps between tokens.  With `jumps=False` every step is made by itself, to the same outcome.
    `checked` verifies the books at every step.  `on_plan` is called with each plan that is not empty, once its blocks
    are arranged, as the live engine would have it; this takes time in proportion to the sequences, and needs
    `jumps=False`.
    """

    def __init__(
        self,
        limits: BatchLimits,
        num_blocks: int,
        timer: StepTimer,
        *,
        gaps: GapRecorder | None = None,
        jumps: bool = True,
        checked: bool = False,
        on_plan: Callable[[StepPlan], None] | None = None,
    ) -> None:
        check_limits(limits, num_blocks)
        if on_plan is not None and jumps:
            raise SimulationError("on_plan was given, but a jump is many steps by one plan: give jumps=False as well")
        self._events: list[EngineEvent] = []
        self._core = SimulatedCore(limits, num_blocks, gaps or IgnoredGaps(), self._events)
        self._timer = timer
        self._jumps = jumps
        self._checked = checked
        self._on_plan = on_plan
        self._now = 0.0
        self._step: StepInProgress | None = None
        self._commands: list[Callable[[], None]] = []
        self._wakes_at: float | None = None
        """When commands came that no step in progress keeps waiting."""

    @property
    def counters(self) -> EngineCounters:
        """Totals so far, of steps that have ended."""
        return self._core.counters

    # ------------------------------------------------------------ commands

    def submit_decode(self, key: int, prompt_tokens: int, split: int, output_tokens: int, now: float) -> None:
        """Serve a prompt to the end: `output_tokens` ≥ 1 tokens, whatever they are. The KV of the first `split` comes
        from elsewhere (0: computed here). One that can never fit is answered with Refused.
        """
        if prompt_tokens < 1 or output_tokens < 1 or not 0 <= split < prompt_tokens:
            raise SimulationError(
                f"job {key}: {prompt_tokens} prompt and {output_tokens} output tokens, split {split}; give at least "
                "one of each, and a split in [0, prompt tokens - 1]"
            )
        self._command(now, partial(self._accept, key, prompt_tokens, output_tokens, split))

    def submit_prefill(self, key: int, tokens: int, now: float) -> None:
        """Compute the KV of `tokens` ≥ 1 tokens and hold it until `end`, or answer with Refused."""
        if tokens < 1:
            raise SimulationError(f"job {key}: a prefill of {tokens} tokens; give at least 1")
        self._command(now, partial(self._accept, key, tokens, 0, 0))

    def kv_landed(self, key: int, now: float) -> None:
        """The KV of [0, split) is in the blocks of this decode job: go on from there. Unknown keys: no effect."""
        self._command(now, partial(self._core.land, key))

    def end(self, key: int, now: float) -> None:
        """Drop the job and free its blocks, finished or not. Unknown keys: no effect."""
        self._command(now, partial(self._core.end, key))

    # ------------------------------------------------------------ time

    def next_event_at(self) -> float | None:
        """When to advance the engine: at the end of what it computes, or at once when it is idle and has commands.

        None: nothing will happen until a command comes.
        """
        return self._wakes_at if self._step is None else self._step.ends_at

    def advance(self, now: float) -> list[EngineEvent]:
        """Complete what ends by `now`, take the commands, begin the next step; the events of all this, in order.

        Of one step, those of sequences that decoded before it come first; the live engine goes by arrival.
        """
        while (at := self.next_event_at()) is not None and at <= now:
            self._now = at
            if self._step is not None:
                step, self._step = self._step, None
                self._core.complete(step)
            self._take_commands()
            if self._checked:
                check_end(self._core)
            self._begin()
        events = self._events.copy()
        self._events.clear()
        return events

    def emitted(self, now: float) -> list[tuple[int, int]]:
        """Of every decode job with a token, its key and the tokens that it has emitted by `now`."""
        step = self._step
        return self._core.emitted(0 if step is None else step.run.step_at(now - step.began) - 1)

    def load(self, now: float) -> SimulatedLoad:
        """What the engine holds at `now`; the step in progress has taken its blocks and computed nothing yet."""
        core, step = self._core, self._step
        made = 0 if step is None else step.run.step_at(now - step.began) - 1
        singles = [s for s in core.prompts if s.pending == 1]
        crowd_known = core.crowd.context + core.crowd.count * (made + 1)
        return SimulatedLoad(
            waiting=len(core.waiting),
            running=len(core.by_key) - len(core.waiting),
            queued_tokens=core.waiting.tokens + sum(s.pending for s in core.prompts) - len(singles),
            context_tokens=crowd_known + sum(s.known for s in singles),
            blocks_used=core.used + core.crowd.growth(made),
            blocks_total=core.num_blocks,
            steps=core.counters.steps + made,
            decodes=core.crowd.count + len(singles),
            partial_tokens=sum(s.partial for s in core.prompts),
        )

    def _command(self, now: float, perform: Callable[[], None]) -> None:
        due = self.next_event_at()
        if now < self._now or (due is not None and due < now):
            raise SimulationError(
                f"a command at {now!r} s to an engine that stands at {self._now!r} s and is due at {due!r} s: advance "
                "it to that first, and never go back in time"
            )
        self._commands.append(perform)
        if self._step is None:
            self._wakes_at = now
        else:
            self._step.cut_at(now)

    def _accept(self, key: int, prompt: int, output: int, split: int) -> None:
        self._core.accept(key, prompt, output, split, self._now)

    def _take_commands(self) -> None:
        commands, self._commands = self._commands, []
        self._wakes_at = None
        for perform in commands:
            perform()

    # ------------------------------------------------------------ steps

    def _begin(self) -> None:
        """Begin a step, after decisions that compute nothing (they only move blocks, and take no time)."""
        core = self._core
        while True:
            batch = core.arrange(self._now)
            if self._checked:
                check_begin(core, batch)
            computes = bool(core.crowd.count or batch.singles or batch.chunks)
            changed = bool(batch.preempted or batch.admitted)
            if self._on_plan is not None and (computes or changed):
                self._on_plan(step_plan(core, batch))
            if computes:
                run = self._timed(batch)
                self._step = StepInProgress(self._now, self._now + run.seconds(run.steps), run, batch)
            if computes or not changed:
                return

    def _timed(self, batch: Batch) -> DecodeRun:
        crowd = self._core.crowd
        if batch.chunks or batch.singles:
            chunks = [(count, sequence.computed) for sequence, count in batch.chunks]
            decodes = crowd.count + len(batch.singles)
            context = crowd.context + sum(sequence.computed for sequence in batch.singles)
            run = DecodeRun(self._timer.step_seconds(chunks, decodes, context), 0.0, 1)
        else:
            line = self._timer.decode_line(crowd.count)
            # Who was refused stays refused while blocks only become fewer.  But a step that preempts asks nobody, and
            # one that admits keeps a reserve for those admitted which the next does not keep while their KV comes.
            is_settled = not self._core.waiting or not (batch.preempted or batch.admitted)
            steps = crowd.steps_ahead(self._core.free) if self._jumps and is_settled else 1
            first = line.base + line.per_context * crowd.context
            run = DecodeRun(first, line.per_context * crowd.count, steps)
        check_seconds(run)
        return run
