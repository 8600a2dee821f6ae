"""Which strategies suit a model and a machine, and why the others do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from services.simulator.hardware.models import MODELS, ModelSpec, find_model
from services.simulator.hardware.stages import require_suitable
from services.simulator.hardware.strategy import Strategy, candidates, strategies, unsuitable

LLAMA3 = find_model("LLaMA3-8B")
SMOL = find_model("SmolLM2-135M")


def test_candidates_of_four_devices() -> None:
    words = [str(strategy) for strategy in candidates(4)]
    assert words == ["TP1", "TP2", "TP1 PP2", "TP4", "TP2 PP2", "TP1 PP4"]
    assert candidates(1) == (Strategy(),)
    assert candidates(3) == candidates(2)


def test_of_a_machine_of_eight_all_suit_a_model_of_eight_kv_heads() -> None:
    assert strategies(LLAMA3, 8) == candidates(8)


@pytest.mark.parametrize(
    ("model", "tp", "pp", "devices", "reason"),
    [
        ("LLaMA3-8B", 3, 1, 6, "tp 3 and pp 1: each must be a power of two"),
        ("LLaMA3-8B", 1, 0, 8, "tp 1 and pp 0"),
        ("LLaMA3-8B", 4, 1, 6, "TP4 takes 4 devices, which do not divide the 6 of a machine"),
        ("LLaMA3-8B", 4, 4, 8, "TP4 PP4 takes 16 devices"),
        ("SmolLM2-135M", 2, 1, 8, "TP2 does not divide the 9 heads of SmolLM2-135M"),
        ("Qwen2-7B", 8, 1, 8, "TP8 does not divide the 28 heads"),
        ("SmolLM2-135M", 1, 32, 64, "PP32 is more stages than the 30 layers"),
    ],
)
def test_why_not(model: str, tp: int, pp: int, devices: int, reason: str) -> None:
    found = unsuitable(find_model(model), Strategy(tp, pp), devices)
    assert found is not None
    assert reason in found
    assert Strategy(tp, pp) not in strategies(find_model(model), devices)


def test_kv_heads_are_divided_or_replicated() -> None:
    # 8 KV heads and 32 heads: each KV head at one of 8 ranks, or at two of 16.
    assert unsuitable(LLAMA3, Strategy(16), 16) is None
    six = ModelSpec(name="six", layers=4, hidden=512, heads=24, kv_heads=6, head_dim=64, intermediate=512, vocab=100)
    assert unsuitable(six, Strategy(2), 8) is None
    assert unsuitable(six, Strategy(4), 8) == "TP4 neither divides the 6 KV heads of six nor is a multiple of them"


def test_a_strategy_that_suits_nowhere_is_refused_with_those_that_do() -> None:
    require_suitable(SMOL, Strategy(1, 4))
    with pytest.raises(
        ConfigError, match=r"TP2 does not divide the 9 heads.*8 devices it can be TP1, TP1 PP2, TP1 PP4"
    ):
        require_suitable(SMOL, Strategy(2))


@given(st.sampled_from(MODELS), st.integers(1, 16))
def test_instances_fill_a_machine_when_their_devices_add_up(model: ModelSpec, devices: int) -> None:
    found = strategies(model, devices)
    assert found[0] == Strategy()
    assert len(set(found)) == len(found)
    sizes = {strategy.devices for strategy in found}
    assert all(devices % size == 0 for size in sizes)
    # Largest first, each into the first gap at a multiple of its size: no gap is left before the last.
    assert all(larger % smaller == 0 for larger in sizes for smaller in sizes if smaller <= larger)
