"""KV room beside a model's weights, and models that do not fit."""

import math
import re

import pytest

from common.errors import ConfigError
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.memory import InfeasibleError, kv_capacity_tokens
from services.simulator.hardware.models import find_model

CATALOGUE = load_catalogue()
LLAMA3 = find_model("LLaMA3-8B")


def test_by_hand() -> None:
    # 0.9 · 22,589 MiB - 16,060,522,496 - 1.5 GB = 3.757 GB, of 131,072 bytes each.
    room = 0.9 * 22589 * 2**20 - 2 * 8_030_261_248 - 1.5e9
    assert kv_capacity_tokens(CATALOGUE.device("A10"), LLAMA3, "float16") == math.floor(room / 131_072)


@pytest.mark.parametrize(
    ("device", "model", "tokens"),
    [
        ("A10", "LLaMA3-8B", 28_076),
        ("A10", "Qwen2-7B", 78_648),
        ("A30", "LLaMA3-8B", 39_062),
        ("A30", "Qwen2-7B", 103_759),
    ],
)
def test_near_the_room_of_an_independent_simulation(device: str, model: str, tokens: int) -> None:
    # It took an A10 as 23.6 GB and an A30 as 25.2 GB.
    assert kv_capacity_tokens(CATALOGUE.device(device), find_model(model), "float16") == pytest.approx(tokens, rel=0.03)


def test_a_model_that_does_not_fit_is_refused_with_what_is_missing() -> None:
    with pytest.raises(InfeasibleError) as error:
        kv_capacity_tokens(CATALOGUE.device("T4"), LLAMA3, "float16")
    text = str(error.value)
    assert text.startswith("LLaMA3-8B in float16 does not fit T4: 16.06 GB of weights")
    missing = 2 * 8_030_261_248 + 1.5e9 - 0.9 * 15095 * 2**20
    assert f"are {missing / 1e9:.2f} GB more than 0.9 of its 15.83 GB" in text
    least = float(re.findall(r"more than ([\d.]+) GB, or", text)[0])
    assert least == pytest.approx((2 * 8_030_261_248 + 1.5e9) / 0.9 / 1e9, abs=0.01)
    assert "share the model among at least 2 of these" in text
    assert "16-bit" not in text


def test_float32_is_told_of_16_bits() -> None:
    with pytest.raises(InfeasibleError, match="or use a 16-bit dtype"):
        kv_capacity_tokens(CATALOGUE.device("A10"), LLAMA3, "float32")
    assert kv_capacity_tokens(CATALOGUE.device("A100"), LLAMA3, "float32") > 100_000


def test_the_number_to_share_among_is_enough() -> None:
    t4, llama70 = CATALOGUE.device("T4"), find_model("Llama2-70B")
    with pytest.raises(InfeasibleError) as error:
        kv_capacity_tokens(t4, llama70, "float16")
    number = int(re.findall(r"at least (\d+) of these", str(error.value))[0])
    usable = 0.9 * t4.memory_bytes - 1.5e9
    weights = llama70.weight_bytes("float16")
    assert (number - 1) * usable < weights <= number * usable


def test_less_utilisation_and_a_larger_runtime_leave_less() -> None:
    a10 = CATALOGUE.device("A10")
    least = kv_capacity_tokens(a10, LLAMA3, "float16", utilisation=0.85)
    assert 0 < least < kv_capacity_tokens(a10, LLAMA3, "float16")
    fewer = kv_capacity_tokens(a10, LLAMA3, "float16", runtime_bytes=1_500_000_000 + 131_072 * 1000)
    assert fewer == kv_capacity_tokens(a10, LLAMA3, "float16") - 1000
    with pytest.raises(InfeasibleError, match="take a device"):
        kv_capacity_tokens(a10, LLAMA3, "float16", runtime_bytes=10**12)


@pytest.mark.parametrize("utilisation", [0.0, 1.01, -1.0, math.nan])
def test_a_utilisation_that_is_none_is_refused(utilisation: float) -> None:
    with pytest.raises(ConfigError, match="utilisation is"):
        kv_capacity_tokens(CATALOGUE.device("A10"), LLAMA3, "float16", utilisation=utilisation)
