"""What a token costs at a decode instance, by numbers that a person can check."""

import msgspec
import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from services.scheduling.ledgers.rates import Rates, decode_rates
from services.scheduling.ledgers.work_ledger import Mix, Work
from tests.unit.scheduling.costs_case import a_decode, a_member

# A step of decodes takes 10 ms and 1 ms for each sequence; one with a chunk of a prompt 15 ms and 0.1 ms per token.
PLAIN = InstanceCosts(
    prefill=PrefillCost(base=0.01, per_token=1e-4),
    mixed=MixedStepCost(base=0.015, per_token=1e-4, per_chunk_context=0.0, per_decode_context=0.0),
    decode=DecodeStepCost(base=0.010, per_sequence=0.001, per_context=0.0),
)


def rates_of(mix: Mix, *, cost_factor: float = 1.0, **facts: object) -> Rates:
    member = a_member("d0", **{"costs": PLAIN, "max_batch": 20, "budget": 1000, **facts})  # type: ignore[arg-type]
    return decode_rates(a_decode(member=member, cost_factor=cost_factor), mix)


def mix_of(prompt: int, output: int, sequences: int = 1) -> Mix:
    return Mix(sequences, prompt * sequences, prompt * sequences, output * sequences)


def test_a_full_batch_shares_the_step_of_its_decodes() -> None:
    """max_batch 20: a step takes 30 ms, 1.5 ms for each of its tokens."""
    rates = rates_of(mix_of(100, 900))
    assert rates.batch == 20
    assert rates.output_s == pytest.approx(0.030 / 20)


def test_a_prompt_costs_what_it_adds_to_a_step_of_decodes() -> None:
    """980 tokens fill the step of 20 decodes: 15 ms + 1000 tokens of 0.1 ms, of which 30 ms are due without them."""
    rates = rates_of(mix_of(100, 900))
    assert rates.prompt_s == pytest.approx((0.015 + 0.1 - 0.030) / 980)


def test_memory_may_hold_fewer_than_max_batch() -> None:
    """A sequence half way through holds 100 + 450 tokens: 5500 are 10 of them."""
    assert rates_of(mix_of(100, 900), tokens=5500).batch == pytest.approx(10)
    assert rates_of(mix_of(100, 900), tokens=500).batch == 1.0


def test_the_budget_may_feed_fewer() -> None:
    """990 of 1000 tokens per step are prompt: each step begins a request, which stays for 10 steps."""
    rates = rates_of(mix_of(990, 10))
    assert rates.batch == pytest.approx(10)
    # All time is spent in full steps: what a request costs is one of them.
    assert rates.seconds(990, 10) == pytest.approx(0.015 + 0.1)


def test_without_a_budget_every_prompt_is_one_chunk() -> None:
    member = msgspec.structs.replace(a_member("d0", costs=PLAIN, max_batch=20), budget=None)
    rates = decode_rates(a_decode(member=member), mix_of(500, 10))
    assert rates.batch == 20
    assert rates.prompt_s == pytest.approx((0.015 + 0.0001 * 520 - 0.030) / 500)


def test_contexts_are_those_of_sequences_half_way() -> None:
    reads = msgspec.structs.replace(PLAIN, decode=DecodeStepCost(base=0.0, per_sequence=0.0, per_context=1e-6))
    assert rates_of(mix_of(100, 900), costs=reads).output_s == pytest.approx(550e-6)


def test_a_prompt_never_costs_less_than_nothing() -> None:
    """Two lines were fitted apart: here a step with a chunk seems to take less than one without."""
    odd = msgspec.structs.replace(PLAIN, decode=DecodeStepCost(base=9.0, per_sequence=0.0, per_context=0.0))
    assert rates_of(mix_of(100, 900), costs=odd).prompt_s == 0.0


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_rates_follow_what_steps_take_lately(factor: float) -> None:
    plain, now = rates_of(mix_of(300, 100)), rates_of(mix_of(300, 100), cost_factor=factor)
    assert now.prompt_s == pytest.approx(factor * plain.prompt_s)
    assert now.output_s == pytest.approx(factor * plain.output_s)
    assert now.batch == plain.batch


def test_the_mean_counts_and_not_the_number() -> None:
    assert rates_of(mix_of(300, 100)) == rates_of(mix_of(300, 100, sequences=7))


def test_work_in_seconds() -> None:
    rates = Rates(prompt_s=0.001, output_s=0.01, batch=4)
    assert rates.work_seconds(Work(prompt_tokens=500, output_tokens=30)) == pytest.approx(0.8)
    assert rates.work_seconds(Work()) == 0.0
