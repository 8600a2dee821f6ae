"""Continuous batching: what one step of an engine computes, whom it admits and whom it sends back.

`decide` is a pure function of views of the sequences.  Its rules, in order:

1. Every running sequence with one token left to compute gets it (these are the decodes).  One that needs a block when
   none is free takes it from the newest running sequence, which is preempted (its KV is dropped and computed again).
2. Waiting sequences are admitted first come, first served, while slots and blocks for all their known tokens are
   there; a reserve of one block per running sequence stays free, so that admission does not cause preemption at once.
3. What is left of the budget goes to prompts in chunks.  The oldest prompt gets at least half; the others share the
   rest evenly, so that a long prompt never holds up a short one for more than a step.

The rules are `grow`, `admit` and `share_budget`, which `decide` composes.  The simulator calls the same three on sums
instead of views of all sequences (services.simulator.engine.engine), which is what makes it fast.
"""

from collections.abc import Iterable, Sequence
from enum import Enum, auto

import msgspec


class Phase(Enum):
    """Where a sequence stands in the engine."""

    WAITING = auto()
    """Holds no blocks."""
    RECEIVING = auto()
    """Holds blocks into which KV is being written from outside; must not be touched."""
    RUNNING = auto()
    """Holds blocks; has tokens to compute."""
    HOLDING = auto()
    """Computed; its KV is kept for somebody else to take."""


class SequenceView(msgspec.Struct, frozen=True):
    """What the decision sees of one sequence."""

    key: int
    phase: Phase
    known: int
    """Tokens known: prompt and emitted ones."""
    computed: int
    """Tokens whose KV is in the blocks; for one that waits, those whose KV it will find when it is admitted."""
    blocks: int
    """Blocks held."""
    freeable: int
    """Blocks that preempting it would free (those shared with a sibling choice stay)."""
    external: bool = False
    """Waiting: once admitted, its first tokens' KV comes from outside."""
    shared: int = 0
    """Waiting: leading tokens, whole blocks, that need no room, since their blocks are in use by others."""

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return self.known - self.computed


class BatchLimits(msgspec.Struct, frozen=True):
    """Bounds of one step; None is no bound."""

    block_size: int
    max_sequences: int
    """Sequences that hold blocks at once."""
    budget: int | None = None
    """Tokens per step over all sequences."""
    chunk: int | None = None
    """Tokens per step of one prompt."""
    prompts_per_step: int | None = None
    """Prompts (more than one pending token) in one step."""

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)


class Work(msgspec.Struct, frozen=True):
    """Compute the next `count` tokens of a sequence."""

    key: int
    count: int


class StepPlan(msgspec.Struct, frozen=True):
    """Perform in this order: preempt (free), admit (allocate for all known tokens), grow, compute."""

    preempt: tuple[int, ...] = ()
    admit: tuple[int, ...] = ()
    grow: tuple[int, ...] = ()
    """Sequences that need one more block for their next token."""
    work: tuple[Work, ...] = ()


class Growth(msgspec.Struct, frozen=True):
    """What rule 1 does about blocks, by the keys of the sequences."""

    preempted: tuple[int, ...]
    """The newest first."""
    grown: tuple[int, ...]
    """Each takes one more block; in order of arrival."""
    free_blocks: int
    """What is free after both."""


def decide(sequences: Sequence[SequenceView], free_blocks: int, limits: BatchLimits) -> StepPlan:
    """The next step. `sequences` are in order of arrival; the oldest are served first and preempted last."""
    running = [s for s in sequences if s.phase is Phase.RUNNING]
    growth = grow(running, free_blocks, limits)
    running = [s for s in running if s.key not in growth.preempted]
    admitted: list[SequenceView] = []
    if not growth.preempted:
        holders = sum(s.phase is not Phase.WAITING for s in sequences)
        waiting = [s for s in sequences if s.phase is Phase.WAITING]
        count = admit((s.known - s.shared for s in waiting), holders, len(running), growth.free_blocks, limits)
        admitted = waiting[:count]
    decodes = [s for s in running if s.pending == 1]
    if limits.budget is not None:
        decodes = decodes[: limits.budget]
    left = None if limits.budget is None else limits.budget - len(decodes)
    prompts = [s for s in running if s.pending > 1] + [s for s in admitted if not s.external]
    counts = share_budget([s.pending for s in prompts], left, limits)
    work = [Work(s.key, 1) for s in decodes]
    work += [Work(s.key, count) for s, count in zip(prompts, counts, strict=True) if count > 0]
    working = {item.key for item in work}
    return StepPlan(
        preempt=growth.preempted,
        admit=tuple(s.key for s in admitted),
        grow=tuple(key for key in growth.grown if key in working),
        work=tuple(work),
    )


def grow(running: Sequence[SequenceView], free_blocks: int, limits: BatchLimits) -> Growth:
    """Blocks for the next token of each decode (rule 1); `running` in order of arrival.

    As long as no more need a block than are free, each of them gets one and nobody is preempted.
    """
    preempted: list[int] = []
    grown: list[int] = []
    candidates = list(running)
    for sequence in running:
        if sequence.key in preempted or sequence.pending != 1:
            continue
        if limits.blocks_for(sequence.computed + 1) <= sequence.blocks:
            continue
        while free_blocks == 0 and sequence.key not in preempted:
            victim = candidates.pop()
            preempted.append(victim.key)
            if victim.key in grown:
                grown.remove(victim.key)
                free_blocks += 1
            free_blocks += victim.freeable
        if sequence.key not in preempted:
            grown.append(sequence.key)
            free_blocks -= 1
    return Growth(tuple(preempted), tuple(grown), free_blocks)


def admit(waiting: Iterable[int], holders: int, running: int, free_blocks: int, limits: BatchLimits) -> int:
    """How many of those that wait get their blocks now (rule 2); a step that preempts admits nobody.

    `waiting` are their known tokens, in order of arrival, and read no further than needed; `holders` sequences hold
    blocks, and `running` of these run.  One that does not fit holds back all behind it, so none starves.
    """
    admitted = 0
    for known in waiting:
        needed = limits.blocks_for(known)
        if holders >= limits.max_sequences:
            break
        # With nothing running there is nobody to keep a reserve for, and waiting for one could last for ever.
        reserve = running if holders > 0 else 0
        if free_blocks - needed < reserve:
            break
        admitted += 1
        free_blocks -= needed
        holders += 1
        running += 1
    return admitted


def share_budget(pending: Sequence[int], budget: int | None, limits: BatchLimits) -> list[int]:
    """Tokens for each prompt in this step, by the half-and-half of rule 3.

    `pending` are the prompts' tokens to compute, the oldest first and those just admitted last; `budget` is what the
    decodes leave of it.
    """
    most = limits.prompts_per_step
    served = len(pending) if most is None else min(most, len(pending))
    wants = list(pending[:served]) if limits.chunk is None else [min(limits.chunk, want) for want in pending[:served]]
    unserved = [0] * (len(pending) - served)
    if budget is None or sum(wants) <= budget:
        return wants + unserved
    quota = budget // 2 // (served - 1) if served > 1 else 0
    counts = [want if want < quota else quota for want in wants]
    counts[0] = 0
    left = budget - sum(counts)
    for index, want in enumerate(wants):
        if left == 0:
            break
        extra = min(want - counts[index], left)
        counts[index] += extra
        left -= extra
    return counts + unserved
