"""How long the policy `cronus` takes to place one request, by how many pairs it may choose from."""

import random
from functools import partial

import msgspec

from common.clock import Clock
from services.bench.repeats import Measured, OnStep, interleave
from services.bench.report import Row, Where
from services.bench.scheduling.meshes import a_mesh, a_request
from services.scheduling.policies.balancer import Balance
from services.scheduling.policies.cronus import CronusPolicy, CronusSettings
from services.scheduling.policies.routing import MeshView
from services.scheduling.request import RequestSpec

SIDES = (1, 2, 4, 8)
"""Instances of each role: 1, 4, 16 and 64 pairs."""
_STATES = 16
"""Requests with meshes in different states of load, asked about in turn."""


class Variant(msgspec.Struct, frozen=True):
    """What is measured by itself."""

    side: int
    shortlist: int
    balance: Balance

    def __str__(self) -> str:
        return f"{self.side * self.side} pairs, shortlist {self.shortlist}, {self.balance}"


class _Case(msgspec.Struct, frozen=True):
    """A variant with all that is made before the clock starts."""

    policy: CronusPolicy
    questions: tuple[tuple[RequestSpec, MeshView], ...]

    async def seconds(self, decisions: int, clock: Clock) -> float:
        """Seconds per decision, over `decisions` of them."""
        asked = [self.questions[number % len(self.questions)] for number in range(decisions)]
        started = clock.now()
        for request, mesh in asked:
            self.policy.place(request, mesh)
        return (clock.now() - started) / decisions


async def measure_decisions(decisions: int, rounds: int, clock: Clock, on_step: OnStep) -> list[Row]:
    """A row for each number of pairs, shortlist (as long as a side, that is off, and the default) and balance.

    Each round times `decisions` ≥ 1 calls in a row; a value is the mean of a round in microseconds per decision.
    """
    shortlists = (max(SIDES), CronusSettings().shortlist)
    variants = [Variant(side, most, balance) for side in SIDES for most in shortlists for balance in Balance]
    runs = {variant: partial(_case(variant).seconds, decisions, clock) for variant in variants}
    samples = await interleave(runs, rounds, on_step)
    return [_row(variant, decisions, samples[variant]) for variant in variants]


def _case(variant: Variant) -> _Case:
    draw = random.Random(variant.side)
    policy = CronusPolicy(CronusSettings(shortlist=variant.shortlist, balance=variant.balance))
    questions = [(a_request(draw), a_mesh(variant.side, variant.side, draw)) for _ in range(_STATES)]
    return _Case(policy, tuple(questions))


def _row(variant: Variant, decisions: int, seconds: tuple[float, ...]) -> Row:
    return {
        "kind": "decision",
        "where": Where.REAL,
        "repeats": len(seconds),
        "policy": "cronus",
        "balance": variant.balance,
        "pairs": variant.side * variant.side,
        "shortlist": variant.shortlist,
        "decisions": decisions,
        **Measured.of(value * 1e6 for value in seconds).columns("us_per_decision"),
    }
