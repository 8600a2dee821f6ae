"""The timer of fitted costs: which model prices which step of which role."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from common.errors import ConfigError
from common.messages.control import Role
from services.simulator.hardware.fitted import FittedTimer

COSTS = InstanceCosts(
    PrefillCost(base=0.5, per_token=0.25),
    MixedStepCost(base=1.0, per_token=0.5, per_chunk_context=0.125, per_decode_context=0.0625),
    DecodeStepCost(base=2.0, per_sequence=0.25, per_context=0.5),
)
PREFILL, DECODE = FittedTimer(COSTS, Role.PREFILL), FittedTimer(COSTS, Role.DECODE)


def test_a_prefill_instance_prices_a_whole_prompt_as_one() -> None:
    assert PREFILL.step_seconds([(100, 0)], 0, 0) == 0.5 + 0.25 * 100
    assert DECODE.step_seconds([(100, 0)], 0, 0) == 1.0 + 0.5 * 100


@pytest.mark.parametrize("prefill_timer", [PREFILL, DECODE])
def test_every_other_step_is_mixed_or_of_decodes(prefill_timer: FittedTimer) -> None:
    assert prefill_timer.step_seconds([(100, 8)], 0, 0) == 1.0 + 50 + 1.0
    assert prefill_timer.step_seconds([(60, 0), (40, 8)], 0, 0) == 1.0 + 50 + 1.0
    assert prefill_timer.step_seconds([(100, 0)], 2, 16) == 1.0 + 51 + 1.0
    assert prefill_timer.step_seconds((), 4, 10) == 2.0 + 1.0 + 5.0
    assert prefill_timer.step_seconds((), 0, 0) == 0.0


coefficients = st.floats(0, 1e-2)
costs_of_any_kind = st.builds(
    InstanceCosts,
    st.builds(PrefillCost, coefficients, coefficients),
    st.builds(MixedStepCost, coefficients, coefficients, coefficients, coefficients),
    st.builds(DecodeStepCost, coefficients, coefficients, coefficients),
)
chunk_lists = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 16384)), max_size=3)


@given(costs_of_any_kind, chunk_lists, st.integers(0, 256), st.integers(0, 500_000))
def test_a_decode_instance_costs_what_its_costs_say(
    costs: InstanceCosts, chunks: list[tuple[int, int]], decodes: int, context: int
) -> None:
    context = context if decodes else 0
    shape = StepShape(sum(now for now, _ in chunks), sum(before for _, before in chunks), decodes, context)
    assert FittedTimer(costs, Role.DECODE).step_seconds(chunks, decodes, context) == costs.step_seconds(shape)


@given(costs_of_any_kind, st.sampled_from(Role), st.integers(1, 1000), st.integers(0, 10_000_000))
def test_the_line_is_the_step(costs: InstanceCosts, role: Role, decodes: int, context: int) -> None:
    fitted = FittedTimer(costs, role)
    line = fitted.decode_line(decodes)
    assert line.base + line.per_context * context == fitted.step_seconds((), decodes, context)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("chunks", "decodes", "context"), [([(100, 0)], 0, 0), ([(9, 7)], 3, 50), ([], 4, 10)])
def test_slowed_down_every_step_takes_longer(
    role: Role, chunks: list[tuple[int, int]], decodes: int, context: int
) -> None:
    fitted = FittedTimer(COSTS, role)
    slow = fitted.scaled(3.0)
    assert slow.step_seconds(chunks, decodes, context) == pytest.approx(
        3 * fitted.step_seconds(chunks, decodes, context)
    )


@pytest.mark.parametrize("slowdown", [0.0, -1.0, math.inf, math.nan])
def test_a_slowdown_that_is_none_is_refused(slowdown: float) -> None:
    with pytest.raises(ConfigError, match=r"slowdown is .*; give a factor above 0"):
        DECODE.scaled(slowdown)
