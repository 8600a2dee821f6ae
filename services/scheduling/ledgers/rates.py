"""What a token of work costs at a decode instance, in that instance's seconds. Pure.

After Xiong et al. (arXiv 2504.15303): prefill is bound by compute, decoding by memory, and an instance works on a
request for w = T_p(prompt) + output · T_d(b, s) / b seconds, b the batch that it runs and s its mean context.  Which b,
and what a prompt costs that is computed beside decodes, are ours.
"""

import msgspec

from common.costs.models import InstanceCosts
from services.scheduling.ledgers.work_ledger import Mix, Work
from services.scheduling.policies.routing import InstanceView


class Rates(msgspec.Struct, frozen=True):
    """Seconds of an instance per token, when it has as much to do as it can take."""

    prompt_s: float
    """To compute a token of a prompt beside the decodes."""
    output_s: float
    """To make a token: its part of a step of decodes."""
    batch: float
    """Sequences that decode at once."""

    def seconds(self, prompt_tokens: float, output_tokens: float) -> float:
        """Of so much work; 0 of none."""
        return prompt_tokens * self.prompt_s + output_tokens * self.output_s

    def work_seconds(self, work: Work) -> float:
        """To finish all of it."""
        return self.seconds(work.prompt_tokens, work.output_tokens)


def decode_rates(view: InstanceView, mix: Mix) -> Rates:
    """Of an instance that has registered costs, serving many requests like those of `mix` (not empty).

    The batch b is the least of what `max_batch` allows, what the KV memory holds of sequences half way through their
    answers, and what the budget C feeds: requests of I prompt and O output tokens come at C / (I + O) per step, and
    each stays for O steps.  A step of decodes takes T_d; one that is filled up with C - b tokens of prompts takes more,
    and that is what these cost.
    """
    member, costs = view.member, view.member.costs
    assert costs is not None
    prompt, output = mix.prompt_tokens / mix.sequences, mix.output_tokens / mix.sequences
    context = mix.kv_tokens / mix.sequences + output / 2
    batch = min(float(member.max_batch), member.kv_capacity_tokens / max(1.0, context))
    if member.budget is not None:
        batch = min(batch, member.budget * output / max(1.0, prompt + output))
    batch = max(1.0, batch)
    factor = 1.0 if view.load is None else view.load.cost_factor
    step_s = costs.decode.base + costs.decode.per_sequence * batch + costs.decode.per_context * batch * context
    chunk = max(1.0, prompt if member.budget is None else member.budget - batch)
    filled_s = _mixed_seconds(costs, chunk, prompt / 2, batch, context)
    # Two lines through different points: a filled step may come out below a step of its decodes alone.
    chunk_s = max(0.0, filled_s - step_s)
    return Rates(factor * chunk_s / chunk, factor * step_s / batch, batch)


def _mixed_seconds(costs: InstanceCosts, chunk: float, before: float, batch: float, context: float) -> float:
    """MixedStepCost of means, which are no whole numbers."""
    mixed = costs.mixed
    return (
        mixed.base
        + mixed.per_token * (chunk + batch)
        + mixed.per_chunk_context * before
        + mixed.per_decode_context * batch * context
    )
