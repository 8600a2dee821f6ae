"""The instances that the pools of a request could have, by role; those whose KV memory is too small set apart. Pure."""

from collections.abc import Iterator

import msgspec

from common.messages.control import Role
from services.planner.closed_forms.lengths import Lengths
from services.planner.closed_forms.rates import Instance
from services.planner.plan import Option, Serving
from services.planner.refusals import Obstacle, Refused
from services.planner.request import PlanRequest, Pool
from services.simulator.hardware.strategy import Strategy


class Candidate(msgspec.Struct, frozen=True):
    """A strategy of a pool, in a role, with what closed forms need of it."""

    pool: Pool
    strategy: Strategy
    role: Role
    instance: Instance

    def option(
        self, *, prefill_s: float = 0.0, decode_s: float = 0.0, whole_s: float = 0.0, batch: int | None = None
    ) -> Option:
        """It as a part of plans, with these seconds."""
        return Option(
            pool=self.pool.name,
            role=self.role,
            strategy=self.strategy,
            price=(self.pool.device_price or 0.0) * self.strategy.devices,
            prefill_s=prefill_s,
            decode_s=decode_s,
            whole_s=whole_s,
            batch=batch,
        )

    def refused(
        self,
        obstacle: Obstacle,
        reason: str,
        *,
        serving: Serving | None = None,
        short_bytes: int | None = None,
        floor_s: float | None = None,
    ) -> Refused:
        """That it is no part of plans."""
        return Refused(self.pool.name, self.strategy, obstacle, reason, self.role, serving, short_bytes, floor_s)


def candidates(request: PlanRequest, lengths: Lengths, role: Role) -> Iterator[Candidate | Refused]:
    """One for each strategy of each pool."""
    for pool in request.pools:
        for strategy in pool.facts:
            candidate = Candidate(pool, strategy, role, _instance(request, pool, strategy, lengths))
            yield _short_of_room(candidate) or candidate


def _instance(request: PlanRequest, pool: Pool, strategy: Strategy, lengths: Lengths) -> Instance:
    link = pool.link_share(strategy)
    return Instance(
        facts=pool.facts[strategy],
        engine=pool.template,
        lengths=lengths,
        token_bytes=pool.token_bytes(request.model),
        link_bytes_per_s=link.bytes_per_s,
        link_latency_s=link.latency_s,
        layers=request.model.spec.layers,
    )


def _short_of_room(candidate: Candidate) -> Refused | None:
    """Where its KV does not hold the longest prompt (P), or the longest request (D; its last token is never held)."""
    instance = candidate.instance
    lengths, block = instance.lengths, instance.engine.block_size
    is_prefill = candidate.role is Role.PREFILL
    needed = lengths.longest_prompt if is_prefill else lengths.longest - 1
    missing = -(-needed // block) * block - instance.facts.kv_tokens // block * block
    if missing <= 0:
        return None
    what = "prompt" if is_prefill else "request"
    short = missing * instance.token_bytes // candidate.strategy.devices
    return candidate.refused(
        Obstacle.MEMORY,
        f"its KV holds {instance.facts.kv_tokens:,} tokens, and the longest {what} of the workload has {needed:,}; "
        f"give each device {short / 1e9:.2f} GB more for KV, or leave such requests out",
        short_bytes=short,
    )
