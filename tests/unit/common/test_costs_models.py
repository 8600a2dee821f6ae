"""The linear models: their forms, the choice between them, and what scaling does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from common.costs.step import Step

COSTS = InstanceCosts(
    prefill=PrefillCost(base=2.0, per_token=0.5),
    mixed=MixedStepCost(base=1.0, per_token=10.0, per_chunk_context=100.0, per_decode_context=1000.0),
    decode=DecodeStepCost(base=3.0, per_sequence=7.0, per_context=0.25),
)
COUNT = st.integers(0, 5000)


def test_a_prompt_costs_a_base_and_its_tokens() -> None:
    assert COSTS.prefill.seconds(8) == 2.0 + 8 * 0.5


@pytest.mark.parametrize("tokens", [0, -1])
def test_no_prompt_costs_nothing(tokens: int) -> None:
    assert COSTS.prefill.seconds(tokens) == 0.0


def test_a_mixed_step_counts_decodes_among_its_tokens() -> None:
    shape = StepShape(chunk_tokens=2, chunk_context=3, decodes=4, decode_context=5)
    assert shape.tokens == 6
    assert COSTS.mixed.seconds(shape) == 1.0 + 10.0 * (2 + 4) + 100.0 * 3 + 1000.0 * 5


def test_a_filled_budget_is_the_constant_of_the_paper() -> None:
    """b_c + k_cn·C, whatever shares the budget has."""
    mixed = MixedStepCost(base=1.0, per_token=10.0, per_chunk_context=0.0, per_decode_context=0.0)
    assert {mixed.seconds(StepShape(chunk_tokens=64 - n, decodes=n)) for n in range(64)} == {641.0}


def test_a_step_of_decodes_has_a_model_of_its_own() -> None:
    assert COSTS.step_seconds(StepShape(decodes=4, decode_context=8)) == 3.0 + 7.0 * 4 + 0.25 * 8
    with_a_chunk = StepShape(chunk_tokens=1, decodes=4, decode_context=8)
    assert COSTS.step_seconds(with_a_chunk) == COSTS.mixed.seconds(with_a_chunk)


def test_an_empty_step_costs_nothing() -> None:
    assert StepShape().is_empty()
    assert COSTS.step_seconds(StepShape()) == 0.0


def test_a_step_knows_which_model_it_is_about() -> None:
    shape = StepShape(chunk_tokens=8)
    assert Step(shape, is_prefill=True).seconds(COSTS) == COSTS.prefill.seconds(8)
    assert Step(shape).seconds(COSTS) == COSTS.mixed.seconds(shape)


@given(factor=st.floats(0.01, 100.0), chunk=COUNT, chunk_context=COUNT, decodes=COUNT, decode_context=COUNT)
def test_scaling_scales_every_step_and_every_prompt(
    factor: float, chunk: int, chunk_context: int, decodes: int, decode_context: int
) -> None:
    shape = StepShape(chunk, chunk_context, decodes, decode_context)
    scaled = COSTS.scaled(factor)
    assert scaled.step_seconds(shape) == pytest.approx(factor * COSTS.step_seconds(shape))
    assert scaled.prefill.seconds(chunk) == pytest.approx(factor * COSTS.prefill.seconds(chunk))


def test_scaling_by_one_changes_nothing() -> None:
    assert COSTS.scaled(1.0) == COSTS
