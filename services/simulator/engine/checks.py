"""What must hold of a simulated engine; each check takes constant time and raises SimulationError."""

from services.scheduling.continuous import BatchLimits
from services.simulator.engine.core import SimulatedCore
from services.simulator.engine.decode_run import DecodeRun
from services.simulator.engine.events import SimulationError
from services.simulator.engine.records import Batch


def check_limits(limits: BatchLimits, num_blocks: int) -> None:
    """The bounds are those of an instance that can serve: mesh.yaml has the same rule for its budget."""
    if limits.block_size < 1 or num_blocks < 1 or limits.max_sequences < 1:
        raise SimulationError(f"{num_blocks} blocks of an instance with {limits}: each number must be at least 1")
    if limits.budget is not None and limits.budget < limits.max_sequences:
        raise SimulationError(
            f"a budget of {limits.budget} tokens per step with max_sequences {limits.max_sequences}: each decode takes "
            "one token, so the budget must be at least max_sequences; raise budget or lower max_sequences"
        )


def check_seconds(run: DecodeRun) -> None:
    """Every step takes time, and never less than the one before it with shorter contexts."""
    if not (run.first > 0.0 and run.increment >= 0.0):
        raise SimulationError(
            f"the time model gives a step {run.first!r} s, and {run.increment!r} s more to each that follows: the "
            "first must be above 0 and the second at least 0; correct the coefficients of this instance"
        )


def check_begin(core: SimulatedCore, batch: Batch) -> None:
    """No step computes more than the budget or holds more blocks and sequences than there is room for."""
    limits = core.limits
    tokens = core.crowd.count + len(batch.singles) + sum(count for _, count in batch.chunks)
    if limits.budget is not None and tokens > limits.budget:
        raise SimulationError(f"a step computes {tokens} tokens; the budget is {limits.budget}")
    _check_blocks(core)
    holders = len(core.by_key) - len(core.waiting)
    if holders > limits.max_sequences:
        raise SimulationError(f"{holders} sequences hold blocks; max_sequences is {limits.max_sequences}")


def check_end(core: SimulatedCore) -> None:
    """Blocks are neither lost nor made, and an idle engine holds nothing."""
    _check_blocks(core)
    if not core.by_key and (core.used or core.prompts or core.waiting or core.waiting.tokens):
        raise SimulationError(
            f"no job is left, but {core.used} blocks, {len(core.prompts)} prompts in progress and "
            f"{len(core.waiting)} waiting ones with {core.waiting.tokens} tokens"
        )
    if not core.by_key and not core.crowd.is_clear():
        raise SimulationError(f"no job is left, but {core.crowd.count} decodes with {core.crowd.context} tokens")


def _check_blocks(core: SimulatedCore) -> None:
    if not 0 <= core.used <= core.num_blocks:
        raise SimulationError(f"{core.used} blocks are held; there are {core.num_blocks}")
