"""Events at one time: hand-offs end first, then requests arrive, and engines go on last."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from services.scheduling.placement import Placement
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import MeshView, Wait
from services.scheduling.request import RequestSpec
from services.simulator.simulation import Order
from tests.unit.simulator.simulation_case import (
    LinearTimer,
    cluster,
    decode,
    finished,
    first_tokens,
    handed_over,
    placed,
    prefill,
    simulation,
)


class Watching(FixedPolicy):
    """Keeps what each request saw when it was placed: prompts in progress at P, and requests at D."""

    def __init__(self, split: int) -> None:
        super().__init__(split)
        self.seen: list[tuple[int, int]] = []

    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        self.seen.append((len(mesh.prefills[0].pending_prompts), mesh.decodes[0].outstanding_requests))
        return super().place(request, mesh)


@dataclass(frozen=True)
class Counting(LinearTimer):
    """Keeps the tokens of every step that is not of decodes alone."""

    tokens: list[int] = field(default_factory=list)

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        self.tokens.append(decodes + sum(computed for computed, _ in chunks))
        return super().step_seconds(chunks, decodes, decode_context)


def test_the_order() -> None:
    assert sorted(Order) == [Order.LANDED, Order.ARRIVAL, Order.STEP]


@pytest.mark.parametrize("at_nine", ["inside a run", "end of a run", "end of a step by itself"])
def test_a_landing_an_arrival_and_the_end_of_a_step_at_one_time(at_nine: str) -> None:
    # P computes 4 tokens in 4 s, sends a layer in 0.25 s, and all is there 0.75 s later. Every step of D takes 1 s.
    # X: P [0, 4), there at 5; D computes its last token in [5, 6) and decodes in steps that end at 7, 8, 9, ...
    # A: P [4, 8), there at 9, its other 4 tokens to compute. E comes at 9 with one token, which needs no P.
    # However the step that ends at 9 came about, the one that begins at 9 has A's chunk and E's token in it.
    timer = Counting(base=1.0)
    policy = Watching(4)
    instances = cluster(prefill("p", LinearTimer(per_token=1.0)), decode("d", timer), bytes_per_s=64.0, latency_s=0.75)
    x = (0.0, 5, 4 if at_nine == "end of a run" else 8)
    # One more token in [8, 9) cuts the run of X, so that the step is one by itself.
    y = [(7.5, 1, 1)] if at_nine == "end of a step by itself" else []
    run = simulation(instances, policy, x, (0.0, 8, 1), *y, (9.0, 1, 1))
    assert handed_over(run)[1] == 9.0
    assert placed(run)[-1] == 9.0
    assert [first_tokens(run)[1], first_tokens(run)[-1]] == [10.0, 10.0]
    assert finished(run)[0] == (9.0 if at_nine == "end of a run" else 13.0)
    assert timer.tokens[-1] == 4 + 1 + (at_nine != "end of a run")
    # E saw that P has nothing of A to do any more, for A had landed; and that D has A and whatever ends at 9.
    assert policy.seen[-1] == (0, 2 + len(y))


def test_requests_that_come_together_are_in_one_step() -> None:
    run = simulation(cluster(decode("d", LinearTimer(1.0, 1.0))), 0, (3.0, 2, 1), (3.0, 3, 1))
    # One step of 5 tokens, and not two.
    assert finished(run) == [9.0, 9.0]


def test_hand_offs_that_land_together_are_in_one_step() -> None:
    p = [prefill(name, LinearTimer(per_token=1.0)) for name in ("p0", "p1")]
    run = simulation(cluster(*p, decode("d", LinearTimer(1.0, 1.0)), bytes_per_s=64.0), 4, (0.0, 6, 1), (0.0, 7, 1))
    assert handed_over(run) == [4.25, 4.25]
    # One step of 2 + 3 tokens.
    assert finished(run) == [10.25, 10.25]


def test_what_a_step_frees_is_taken_at_once() -> None:
    # B waits for the one place at D, which A leaves at 2; C, which comes at 2, stands behind B.
    run = simulation(
        cluster(decode("d", LinearTimer(base=1.0), max_batch=1)),
        0,
        (0.0, 2, 2),
        (0.5, 2, 1),
        (2.0, 2, 1),
        decode_batches=1,
    )
    assert placed(run) == [0.0, 2.0, 3.0]
    assert finished(run) == [2.0, 3.0, 4.0]
