"""A decode instance as the policy `capacity` sees it: all it has to do, with the request to be placed. Pure."""

from collections.abc import Sequence
from functools import reduce
from typing import Final

import msgspec

from services.scheduling.ledgers.kv_use import peak_tokens
from services.scheduling.ledgers.rates import Rates, decode_rates
from services.scheduling.ledgers.work_ledger import Mix, Share, Work
from services.scheduling.policies.routing import InstanceView, MeshView
from services.scheduling.request import RequestSpec

_AHEAD: Final = 1
"""Sequences beyond its batch, and beyond those about to end, with which an instance is taken to begin at once: one that
is there already takes a slot the moment that it is free, one that is sent for misses a step."""


_LEAST_S: Final = 1e-9
"""Taken for the work of a request that is nothing."""


class Demand(msgspec.Struct, frozen=True):
    """A request, as far as its place depends on it."""

    work: Work
    """All of it, at one decode instance."""
    mix: Mix
    """It and all that the decode instances have been given: what each of them is to be priced for."""

    @classmethod
    def of(cls, request: RequestSpec, mesh: MeshView, split: int = 0) -> "Demand":
        """What D has to do of it when a P computes `split` tokens of the prompt, with the output length that `mesh`
        says is expected, else with all that the request allows.
        """
        expected = request.max_tokens if mesh.expected_output is None else mesh.expected_output
        output = max(1, min(request.max_tokens, int(expected)))
        prompt = len(request.prompt)
        work = Work.of(Share(prompt - split, prompt, output, request.max_tokens, request.choices))
        return cls(work, reduce(Mix.plus, [view.work.mix for view in mesh.decodes], work.mix))

    @property
    def output_tokens(self) -> float:
        """Of all choices."""
        return float(self.work.output_tokens)


class Target(msgspec.Struct, frozen=True):
    """One decode instance that can hold the request at all."""

    view: InstanceView
    rates: Rates
    queued_s: float
    """Q: for all that it has been given."""
    added_s: float
    """w: for the request."""
    use: float
    """u: the most of its KV memory that it is expected to need, with the request; above 1 there is too little."""
    pressure: float
    """g(u)."""
    idle: float
    """Share of its batch that is free."""
    has_room: bool
    """Whether it may be given the request."""
    begins: bool
    """Whether the request would not be in a queue there."""

    @classmethod
    def of(cls, view: InstanceView, demand: Demand, free_use: float | None, held: int = 0) -> "Target":
        """`free_use` is u0; None: the use of KV memory does not matter. Of the tokens that the demand has D compute it
        has the KV of `held`.
        """
        rates = decode_rates(view, demand.mix)
        use = peak_tokens(view.work.plus(demand.work)) / view.member.kv_capacity_tokens
        is_idle = view.outstanding_requests == 0
        # An idle instance takes whatever it can hold at all; where choices share it, its engine preempts.
        is_full = free_use is not None and use >= 1.0 and not is_idle
        present = view.work.mix.sequences
        staying = present - view.work.ending
        return cls(
            view=view,
            rates=rates,
            queued_s=rates.work_seconds(view.work),
            added_s=rates.work_seconds(demand.work) - held * rates.prompt_s,
            use=use,
            pressure=1.0 if free_use is None else pressure_of(use, free_use),
            idle=max(0.0, 1.0 - present / rates.batch),
            has_room=view.has_room and not is_full,
            begins=is_idle or staying + demand.work.mix.sequences <= rates.batch + _AHEAD,
        )

    def through_s(self) -> float:
        """Q + w."""
        return self.queued_s + self.added_s

    def score(self) -> float:
        """S where it computes all of the request."""
        return self.through_s() * self.pressure


def shared_finish_s(targets: Sequence[Target], requests: int) -> float:
    """T: the seconds until all have done what they have and `requests` like this one, dealt out so that none of those
    that take a part is done before another:  sum of max(0, T - Q_i) / w_i = requests.  At least one target.
    """
    through, rate = float(requests), 0.0
    finish = float("inf")
    for target in sorted(targets, key=lambda target: target.queued_s):
        if finish <= target.queued_s:
            break
        per_s = 1.0 / max(target.added_s, _LEAST_S)
        through, rate = through + target.queued_s * per_s, rate + per_s
        finish = through / rate
    return finish


def pressure_of(use: float, free_use: float) -> float:
    """g: 1 up to `free_use` in [0, 1), (1 - free_use) / (1 - use) beyond, infinite from 1 on."""
    if use <= free_use:
        return 1.0
    return (1.0 - free_use) / (1.0 - use) if use < 1.0 else float("inf")
