"""How long a decode instance takes for the chunks of prompts beside its decodes. Pure.

By the lines that were fitted to its steps.  An instance of p pipeline stages has p micro-batches, each with a p-th of
the sequences and a budget of its own; together they make a round.
"""

import numpy as np

from common.costs.models import InstanceCosts
from services.planner.closed_forms.lengths import Vector
from services.planner.closed_forms.rates import Instance


def chunks(instance: Instance, decodes: Vector) -> tuple[Vector, Vector]:
    """Of each prompt of the lengths the number of chunks, and the sum of the contexts that they come after.

    A chunk is what the decodes of its micro-batch leave of the budget.  `[m]` to `[m, n]` each.
    """
    size = (instance.engine.budget - decodes / instance.facts.strategy.pp)[:, np.newaxis]
    count = np.ceil(instance.lengths.prompts.tokens / size)
    # The contexts 0, c, 2c … of N chunks sum to c·N·(N - 1)/2.
    return count, size * count * (count - 1) / 2


def chunk_seconds(instance: Instance, decodes: Vector) -> Vector:
    """The steps that have the chunks of each prompt, while so many decode, where all micro-batches have as much to do:
    `[m]` to `[m, n]`.
    """
    costs = instance.facts.throughput_costs
    return _with_chunks(costs, instance, decodes, step_beside_chunks(instance, decodes))


def chunk_latency(instance: Instance, decodes: Vector) -> Vector:
    """The same of a prompt that is the only one: each chunk goes through all stages before the next, and the round
    lasts no less; `[m]` to `[m, n]`.
    """
    costs, share = instance.facts.costs, decodes / instance.facts.strategy.pp
    beside = costs.mixed.base + costs.mixed.per_token * share + _reading(costs, instance, decodes)
    through = _with_chunks(costs, instance, decodes, beside)
    return np.maximum(through, chunk_seconds(instance, decodes))


def full_chunk_seconds(instance: Instance, decodes: Vector) -> Vector:
    """A step whose chunk fills the budget, at the mean context of such chunks: `[m]` to `[m]`."""
    count, contexts = chunks(instance, decodes)
    prompts, stages = instance.lengths.prompts, instance.facts.strategy.pp
    size = instance.engine.budget - decodes / stages
    before = prompts.averages(contexts) / prompts.averages(count)
    through, full = instance.facts.costs.mixed, instance.facts.throughput_costs.mixed
    beside = through.base + through.per_token * decodes / stages + _reading(instance.facts.costs, instance, decodes)
    alone = beside + through.per_token * size + through.per_chunk_context * before
    found: Vector = np.maximum(
        alone, step_beside_chunks(instance, decodes) + full.per_token * size + full.per_chunk_context * before
    )
    return found


def step_beside_chunks(instance: Instance, decodes: Vector) -> Vector:
    """What a step with a chunk takes beside what the chunk adds: `[m]` to `[m]`."""
    costs = instance.facts.throughput_costs
    beside: Vector = costs.mixed.base + costs.mixed.per_token * decodes + _reading(costs, instance, decodes)
    return beside


def _reading(costs: InstanceCosts, instance: Instance, decodes: Vector) -> Vector:
    return costs.mixed.per_decode_context * instance.lengths.context * decodes


def _with_chunks(costs: InstanceCosts, instance: Instance, decodes: Vector, beside: Vector) -> Vector:
    count, contexts = chunks(instance, decodes)
    own = costs.mixed.per_token * instance.lengths.prompts.tokens + costs.mixed.per_chunk_context * contexts
    found: Vector = count * beside[:, np.newaxis] + own
    return found
