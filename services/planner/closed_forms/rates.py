"""What one instance does per second in each role, in closed form and without queues. Pure.

Seconds per request are of instance time for a mean request, so that n instances that are kept busy serve n / seconds
requests per second.  Whole prompts and steps of decodes take what the timers of the facts say, which the simulator goes
by as well; steps with a chunk, which there are too many kinds of, what the lines that were fitted to them say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final

import numpy as np

from common.config.types import InstanceConfig
from common.messages.control import Role
from services.planner.closed_forms.lengths import Lengths, Vector
from services.simulator.cluster.instance_facts import InstanceFacts
from services.simulator.hardware.pipelined import PipelinedTimer

_KNOTS: Final = 64

_StepSeconds = Callable[[Sequence[tuple[int, int]], int, int], float]


class Factor(StrEnum):
    """What keeps an instance from doing more."""

    COMPUTE = "computation"
    LINK = "link"
    KV_ROOM = "KV room"
    MAX_BATCH = "max_batch"
    BUDGET = "token budget"
    TPOT = "TPOT limit"
    TTFT = "TTFT limit"


@dataclass(frozen=True)
class Instance:
    """One instance and what it is to serve."""

    facts: InstanceFacts
    engine: InstanceConfig
    """Of which budget, prefill_chunk, max_batch and block_size count."""
    lengths: Lengths
    token_bytes: int
    """Of KV, over all its devices."""
    link_bytes_per_s: float
    """Its share of its machine's link."""
    link_latency_s: float
    layers: int

    @property
    def round_budget(self) -> int:
        """Tokens that all its micro-batches may have in a round."""
        return self.engine.budget * self.facts.strategy.pp

    def link_seconds(self, tokens: Vector) -> Vector:
        """How long the KV of `tokens` occupies its link: `[n]` to `[n]`."""
        return tokens * (self.token_bytes / self.link_bytes_per_s)


def room(instance: Instance) -> float:
    """Sequences that KV has room for: K / mean tokens held. A sequence's last block is half empty."""
    return instance.facts.kv_tokens / (instance.lengths.context + (instance.engine.block_size - 1) / 2)


def slots(instance: Instance) -> tuple[int, Factor]:
    """Sequences at once, and what bounds them: B = min(max_batch, K / mean tokens held), at least 1.

    As in Xiong et al. (arXiv 2504.15303), where all requests are alike and hold L_in + L_out/2 tokens on average.
    """
    most = int(room(instance))
    if most < instance.engine.max_batch:
        return max(1, most), Factor.KV_ROOM
    return instance.engine.max_batch, Factor.MAX_BATCH


def xiong_tokens_per_s(instance: Instance) -> float:
    """Prompt and output tokens per second of an instance that serves whole requests, B at a time:

        TH = B·(L_in + L_out) / (B·T_p(L_in) + Σ_{j=1..L_out} T_d(B, B·(L_in + j)))

    The form of Xiong et al. as we rebuilt it: B prompts are computed one after another, then all decode to the end.
    """
    batch, _ = slots(instance)
    prompt, output = instance.lengths.prompts.mean, instance.lengths.outputs.mean
    costs = instance.facts.throughput_costs
    decode = costs.decode
    steps = output * (decode.base + decode.per_sequence * batch)
    reading = decode.per_context * batch * (output * prompt + output * (output + 1) / 2)
    return (
        batch * (prompt + output) / (batch * (costs.prefill.base + costs.prefill.per_token * prompt) + steps + reading)
    )


def prompt_seconds(instance: Instance, tokens: Vector) -> Vector:
    """T_pre: how long an idle P takes for each prompt, in chunks of its `prefill_chunk`: `[n]` to `[n]`."""
    return _over_chunks(instance, tokens, instance.facts.timers[Role.PREFILL].step_seconds)


def busy_seconds(instance: Instance, tokens: Vector) -> Vector:
    """The same until the next prompt can follow: with several stages the time of the slowest: `[n]` to `[n]`."""
    timer = instance.facts.timers[Role.PREFILL]
    return _over_chunks(
        instance, tokens, timer.slowest_seconds if isinstance(timer, PipelinedTimer) else timer.step_seconds
    )


def mean_busy_seconds(instance: Instance, tokens: Vector) -> float:
    """Of the time until the next prompt can follow, where `tokens` are of the lengths of prompts: `[n]`.

    Nothing waits between two stages.  So p prompts in p stages move on together when the longest of them is done with
    its stage, and a prompt takes the mean of the longest of p that are drawn at random.
    """
    seconds, stages = busy_seconds(instance, tokens), instance.facts.strategy.pp
    reached = np.cumsum(instance.lengths.prompts.shares) ** stages
    return float(seconds @ np.diff(reached, prepend=0.0))


def decode_seconds(instance: Instance, batches: Vector) -> Vector:
    """T_d: the seconds in which each of so many sequences gets a token, no chunks beside them: `[n]` to `[n]`.

    Sequences hold the mean context.  With p stages each has a p-th of them, and they go round: p times the slowest
    stage, or once through all of them where that takes longer.
    """
    timer, stages = instance.facts.timers[Role.DECODE], instance.facts.strategy.pp
    context = instance.lengths.context
    found = np.empty_like(batches)
    for index, batch in enumerate(batches):
        share = ceil(batch / stages)
        line = timer.decode_line(share)
        found[index] = line.base + line.per_context * share * context
        if isinstance(timer, PipelinedTimer):
            found[index] = max(found[index], stages * timer.slowest_seconds((), share, round(share * context)))
    return found


def prefill_seconds(instance: Instance) -> tuple[float, Factor]:
    """A mean prompt at a P, and what limits it: computing prompts (the mean of T_pre over all lengths), or L·kv /
    bandwidth where that is longer, for prompts are computed while the KV of others is sent.
    """
    prompts = instance.lengths.prompts
    computing = mean_busy_seconds(instance, prompts.tokens)
    sending = prompts.average(instance.link_seconds(prompts.tokens))
    return (sending, Factor.LINK) if sending > computing else (computing, Factor.COMPUTE)


def _over_chunks(instance: Instance, tokens: Vector, step: _StepSeconds) -> Vector:
    """The sum of the steps that each prompt is computed in, the lengths rising."""
    chunk = instance.engine.prefill_chunk
    if chunk is None:
        # Between lengths so near to each other a line is as good.
        knots = tokens
        if len(tokens) > _KNOTS:
            knots = np.geomspace(tokens[0], tokens[-1], _KNOTS)
        found: Vector = np.interp(tokens, knots, [step(((max(1, round(length)), 0),), 0, 0) for length in knots])
        return found
    lengths = [max(1, round(length)) for length in tokens]
    whole = [step(((chunk, done),), 0, 0) for done in range(0, lengths[-1], chunk)]
    before = np.concatenate([[0.0], np.cumsum(whole)])
    return np.array([before[length // chunk] + _rest(length, chunk, step) for length in lengths])


def _rest(length: int, chunk: int, step: _StepSeconds) -> float:
    """The step of what whole chunks leave."""
    rest = length % chunk
    return step(((rest, length - rest),), 0, 0) if rest else 0.0
