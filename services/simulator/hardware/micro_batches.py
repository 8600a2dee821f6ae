"""Costs of a pipelined instance, of one of its micro-batches, and of all of them in a row.

An instance of p stages keeps p micro-batches on their way, so that a step has a p-th of its sequences that decode. What
it is told of, and what a profile of it measures, are all of them; what a stage computes are those of one micro-batch.
"""

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost


def kept_full(slowest: InstanceCosts, micro_batches: int) -> InstanceCosts:
    """The seconds of the instance that work takes when every micro-batch always has some.

    `slowest` are the costs of the slowest stage, for steps of one micro-batch.  A prompt alone is one step: its cost
    stays as it is.  A mixed or decode step becomes a round, one step of each micro-batch: it takes as many constants,
    and its tokens, chunk contexts and decode contexts are those of the whole round.
    """
    mixed, decode = slowest.mixed, slowest.decode
    return InstanceCosts(
        prefill=slowest.prefill,
        mixed=MixedStepCost(
            micro_batches * mixed.base, mixed.per_token, mixed.per_chunk_context, mixed.per_decode_context
        ),
        decode=DecodeStepCost(micro_batches * decode.base, decode.per_sequence, decode.per_context),
    )


def of_one_stage(measured: InstanceCosts, stages: int) -> InstanceCosts:
    """The costs of a stage, for steps of one micro-batch, of an instance that was measured as a whole.

    The stages are taken to be equal, and to share what passes between them.  Of the sequences that decode a step has
    one for each `stages` that the instance holds, so that one of them costs the step so many times as much.
    """
    mixed, decode = measured.mixed, measured.decode
    return InstanceCosts(
        prefill=measured.prefill,
        mixed=MixedStepCost(mixed.base, mixed.per_token, mixed.per_chunk_context, stages * mixed.per_decode_context),
        decode=DecodeStepCost(decode.base, stages * decode.per_sequence, stages * decode.per_context),
    ).scaled(1 / stages)
