"""KV room beside a model's weights, and models that do not fit."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.types import DType
from common.errors import ConfigError
from services.simulator.hardware.catalogue import load_catalogue
from services.simulator.hardware.memory import InfeasibleError, kv_capacity_tokens
from services.simulator.hardware.models import find_model
from services.simulator.hardware.stages import stage_models
from services.simulator.hardware.strategy import Strategy, candidates

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
    least = float(re.findall(r"take a device with more than ([\d.]+) GB", text)[0])
    assert least == pytest.approx((2 * 8_030_261_248 + 1.5e9) / 0.9 / 1e9, abs=0.01)
    assert "share the model among 2 of these with TP2, or take" in text
    assert "such as" not in text
    assert "16-bit" not in text


def test_the_smallest_device_that_would_do_is_named() -> None:
    with pytest.raises(InfeasibleError, match=r"more than 19\.51 GB such as L4$"):
        kv_capacity_tokens(CATALOGUE.device("T4"), LLAMA3, "float16", among=CATALOGUE.devices)
    # A V100 has no bfloat16.
    for dtype, named in (("float16", "V100 32GB SXM2"), ("bfloat16", "A100 40GB SXM")):
        with pytest.raises(InfeasibleError, match=rf"such as {named}$"):
            kv_capacity_tokens(CATALOGUE.device("A10"), LLAMA3, dtype, runtime_bytes=8 * 10**9, among=CATALOGUE.devices)


def test_float32_is_told_of_16_bits() -> None:
    with pytest.raises(InfeasibleError, match="or use a 16-bit dtype"):
        kv_capacity_tokens(CATALOGUE.device("A10"), LLAMA3, "float32")
    assert kv_capacity_tokens(CATALOGUE.device("A100"), LLAMA3, "float32") > 100_000


def test_the_number_to_share_among_is_enough() -> None:
    t4, llama70 = CATALOGUE.device("T4"), find_model("Llama2-70B")
    with pytest.raises(InfeasibleError) as error:
        kv_capacity_tokens(t4, llama70, "float16")
    (number, words), *_ = re.findall(r"among (\d+) of these with ([TP0-9 ]+),", str(error.value))
    assert (number, words) == ("16", "TP16")
    assert kv_capacity_tokens(t4, llama70, "float16", strategy=Strategy(16)) >= 1
    for fewer in candidates(8):
        with pytest.raises(InfeasibleError):
            kv_capacity_tokens(t4, llama70, "float16", strategy=fewer)


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


# ---------------------------------------------------------------- several devices


@pytest.mark.parametrize(
    ("device", "model", "too_few", "enough"),
    [
        ("T4", "LLaMA3-8B", 1, 2),
        ("A100 80GB SXM", "Llama2-70B", 1, 2),
        ("A100 40GB SXM", "Llama2-70B", 2, 4),
        ("H100 SXM", "Llama2-70B", 1, 2),
    ],
)
def test_the_least_tensor_parallelism_that_fits(device: str, model: str, too_few: int, enough: int) -> None:
    spec = CATALOGUE.device(device)
    with pytest.raises(InfeasibleError, match=rf"among {enough} of these with TP{enough}"):
        kv_capacity_tokens(spec, find_model(model), "float16", strategy=Strategy(too_few))
    assert kv_capacity_tokens(spec, find_model(model), "float16", strategy=Strategy(enough)) > 5000


def test_two_ranks_by_hand() -> None:
    # Half the weights and half the KV of each token on each of two devices, and 1.5 GB on both.
    room = 0.9 * 15095 * 2**20 - 8_030_261_248 - 1.5e9
    assert kv_capacity_tokens(CATALOGUE.device("T4"), LLAMA3, "float16", strategy=Strategy(2)) == room // 65_536


def test_of_two_devices_that_are_too_small_one_is_told() -> None:
    with pytest.raises(InfeasibleError) as error:
        kv_capacity_tokens(CATALOGUE.device("A100 40GB SXM"), find_model("Llama2-70B"), "float16", strategy=Strategy(2))
    text = str(error.value)
    weights = find_model("Llama2-70B").weight_bytes("float16") / 2
    missing = weights + 163_840 + 1.5e9 - 0.9 * 40536 * 2**20
    assert "does not fit 2 × A100 40GB SXM with TP2: on each 68.98 GB of weights" in text
    assert f"are {missing / 1e9:.2f} GB more than 0.9 of its 42.51 GB" in text


def test_with_more_ranks_than_kv_heads_the_bytes_of_a_token_stop_falling() -> None:
    per_token = [LLAMA3.rank_kv_bytes_per_token("float16", tp) for tp in (1, 2, 4, 8, 16, 32)]
    assert per_token == [131_072, 65_536, 32_768, 16_384, 16_384, 16_384]
    # Whole heads of keys and values are held as well: 16 ranks have more than a sixteenth of the weights.
    of_kv = 2 * 32 * 4096 * 1024 * 2
    assert LLAMA3.rank_weight_bytes("float16", 16) == (2 * 8_030_261_248 // 2 * 2 - of_kv) / 16 + of_kv / 8
    assert LLAMA3.rank_weight_bytes("float16", 8) == 2 * 8_030_261_248 / 8


def test_stages_are_as_large_as_the_layers_allow() -> None:
    # 80 layers over 4: all alike but for the two vocab × hidden matrices at the ends.
    first, second, third, last = stage_models(find_model("Llama2-70B"), 4)
    assert [stage.layers for stage in (first, second, third, last)] == [20] * 4
    assert first.params - second.params == 32_000 * 8192 == last.params - third.params
    # 30 over 4 and 28 over 8: those without a matrix take what is left over.
    assert [stage.layers for stage in stage_models(find_model("SmolLM2-135M"), 4)] == [7, 8, 8, 7]
    assert [stage.layers for stage in stage_models(find_model("Qwen2-7B"), 8)] == [3, 4, 4, 4, 4, 3, 3, 3]
    assert [stage.layers for stage in stage_models(find_model("SmolLM2-135M"), 16)].count(2) == 14


@given(st.sampled_from(["LLaMA3-8B", "Llama2-70B", "Qwen2.5-32B"]), st.sampled_from([1, 2, 4, 8]))
def test_stages_have_every_parameter_once(name: str, pp: int) -> None:
    model = find_model(name)
    stages = stage_models(model, pp)
    assert sum(stage.layers for stage in stages) == model.layers
    # Each stage counts a last norm, and only one has it.
    assert sum(stage.params for stage in stages) == model.params + (pp - 1) * model.hidden


def test_the_stage_with_the_least_room_decides() -> None:
    a10, dtype = CATALOGUE.device("A10"), "float16"
    usable = 0.9 * a10.memory_bytes - 1.5e9
    rooms = [(usable - s.weight_bytes("float16")) // s.kv_bytes_per_token("float16") for s in stage_models(LLAMA3, 2)]
    assert kv_capacity_tokens(a10, LLAMA3, dtype, strategy=Strategy(1, 2)) == min(rooms)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_more_devices_hold_more(dtype: DType) -> None:
    a100 = CATALOGUE.device("A100")
    for less, more in [((1, 1), (2, 1)), ((2, 1), (4, 1)), ((1, 1), (1, 2)), ((2, 1), (2, 2)), ((4, 1), (8, 1))]:
        held = [kv_capacity_tokens(a100, LLAMA3, dtype, strategy=Strategy(*each)) for each in (less, more)]
        assert held[1] > 2 * held[0]


def test_a_strategy_that_does_not_suit_is_refused() -> None:
    with pytest.raises(ConfigError, match="TP8 does not divide the 28 heads of Qwen2-7B"):
        kv_capacity_tokens(CATALOGUE.device("A100"), find_model("Qwen2-7B"), "float16", strategy=Strategy(8))
