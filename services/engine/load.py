"""What an engine holds, counted."""

from collections.abc import Collection

from services.engine.api import EngineLoad
from services.engine.kv.pool import BlockPool
from services.engine.sequence import Sequence
from services.scheduling.continuous import Phase


def load_of(sequences: Collection[Sequence], pool: BlockPool, steps: int, tokens: int) -> EngineLoad:
    """The load of an engine with these sequences on `pool`, after so many steps over so many tokens."""
    waiting = queued_tokens = context_tokens = partial_tokens = 0
    for sequence in sequences:
        waiting += sequence.phase is Phase.WAITING
        if sequence.phase is Phase.WAITING or sequence.phase is Phase.RUNNING:
            known = sequence.known
            pending = known - sequence.computed
            if pending > 1:
                queued_tokens += pending
                partial_tokens += sequence.partial
            elif sequence.phase is Phase.RUNNING:
                context_tokens += known
    return EngineLoad(
        waiting=waiting,
        running=len(sequences) - waiting,
        queued_tokens=queued_tokens,
        context_tokens=context_tokens,
        blocks_used=pool.num_used,
        blocks_total=pool.num_blocks,
        steps=steps,
        tokens=tokens,
        partial_tokens=partial_tokens,
        blocks_kept=pool.num_kept,
    )
