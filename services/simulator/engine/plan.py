"""A simulated step, written as the plan that the live engine would have had."""

from services.scheduling.continuous import StepPlan, Work
from services.simulator.engine.core import SimulatedCore
from services.simulator.engine.records import Batch


def step_plan(core: SimulatedCore, batch: Batch) -> StepPlan:
    """The plan of `batch`, whose blocks are arranged; keys count the jobs of the engine in order of arrival from 0.

    Takes time in proportion to the sequences that decode.
    """
    crowd = core.crowd.views()
    grown = sorted(view.key for view in crowd if view.computed % core.limits.block_size == 0)
    decodes = sorted([view.key for view in crowd] + [sequence.order for sequence in batch.singles])
    work = [Work(order, 1) for order in decodes] + [Work(sequence.order, count) for sequence, count in batch.chunks]
    return StepPlan(
        preempt=tuple(sequence.order for sequence in batch.preempted),
        admit=tuple(sequence.order for sequence in batch.admitted),
        grow=tuple(grown),
        work=tuple(work),
    )
