"""A simulated engine's mutable records: one sequence, the step in progress, and what was counted."""

from dataclasses import dataclass

from services.scheduling.continuous import BatchLimits, Phase, SequenceView
from services.simulator.engine.decode_run import DecodeRun


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """One job without its tokens.

    While it is in the crowd of decodes (`finish_tick` ≥ 0), `known` and `computed` stand as when it joined: the crowd
    knows how far it has come since.
    """

    key: int
    """The caller's."""
    order: int
    """Its place among the jobs, the oldest first: what the decisions take for its key."""
    prompt: int
    output: int
    """Tokens to emit; 0 for a prefill job."""
    external: int
    """Leading tokens whose KV will come from outside; 0 once it has."""
    known: int
    """Prompt tokens and emitted ones."""
    computed: int = 0
    phase: Phase = Phase.WAITING
    split: int = 0
    """Leading tokens whose KV came, or will come, from outside."""
    joined: int = 0
    """The tick of the first step that it made in the crowd."""
    finish_tick: int = -1
    """The tick of the step that emits its last token; -1 outside the crowd."""
    last_token_at: float = 0.0
    """When it was preempted after a token: when that token came."""

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be emitted."""
        return self.known - self.computed

    @property
    def partial(self) -> int:
        """Prompt tokens computed here while there is no token yet; 0 for a prefill job."""
        return 0 if self.is_prefill or self.known > self.prompt else max(0, self.computed - self.split)

    @property
    def is_prefill(self) -> bool:
        """Whether its KV is computed for somebody else."""
        return self.output == 0

    def view(self, limits: BatchLimits) -> SequenceView:
        """What the batch decision sees of it while it runs outside the crowd."""
        blocks = limits.blocks_for(self.known)
        return SequenceView(self.order, Phase.RUNNING, self.known, self.computed, blocks, blocks)


@dataclass(slots=True, eq=False)
class Batch:
    """What one decision arranged: who lost and got blocks, and what is computed besides the crowd's tokens."""

    preempted: list[SimulatedSequence]
    admitted: list[SimulatedSequence]
    singles: list[SimulatedSequence]
    """Sequences outside the crowd with one token left to compute, which the decision takes for decodes."""
    chunks: list[tuple[SimulatedSequence, int]]


@dataclass(slots=True, eq=False)
class StepInProgress:
    """One step with a batch, or a run of steps of the crowd alone."""

    began: float
    ends_at: float
    run: DecodeRun
    batch: Batch

    def cut_at(self, now: float) -> None:
        """End the run at the boundary of the step that is running at `now`."""
        steps = self.run.step_at(now - self.began)
        if steps < self.run.steps:
            self.run = DecodeRun(self.run.first, self.run.increment, steps)
            # The sum may come out one rounding below the instant of which it was found to be the end.
            self.ends_at = max(now, self.began + self.run.seconds(steps))


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start, of steps that have ended."""

    steps: int = 0
    mixed_steps: int = 0
    """Steps with at least one chunk."""
    busy_s: float = 0.0
    prompt_tokens: int = 0
    """Tokens computed in chunks: those computed again after a preemption too, but not a last one taken for a decode."""
    output_tokens: int = 0
    """Tokens emitted."""
    preemptions: int = 0
