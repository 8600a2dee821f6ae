"""Model figures against the numbers that the models' makers publish."""

from typing import Any

import pytest

from common.errors import ConfigError, ModelError
from services.simulator.hardware.models import MODELS, find_model, from_hf_config

LLAMA3 = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
}


@pytest.mark.parametrize(
    ("name", "params", "kv_bytes"),
    [
        ("LLaMA3-8B", 8_030_261_248, 131_072),
        ("Qwen2-7B", 7_615_616_512, 57_344),
        ("Llama2-7B", 6_738_415_616, 524_288),
        ("LLaMA-30B", 32_528_943_616, 1_597_440),
        ("Qwen2.5-32B", 32_763_876_352, 262_144),
        ("Llama2-70B", 68_976_648_192, 327_680),
        ("Qwen2.5-72B", 72_706_203_648, 327_680),
        ("SmolLM2-135M", 134_515_008, 23_040),
    ],
)
def test_parameters_and_kv_bytes_are_the_published_ones(name: str, params: int, kv_bytes: int) -> None:
    model = find_model(name)
    assert model.params == params
    assert model.weight_bytes("float16") == model.weight_bytes("bfloat16") == 2 * params
    assert model.weight_bytes("float32") == 4 * params
    assert model.kv_bytes_per_token("bfloat16") == kv_bytes
    assert model.kv_bytes_per_token("float32") == 2 * kv_bytes


def test_every_model_is_checked_above() -> None:
    assert len(MODELS) == 8


def test_linear_parameters_by_hand() -> None:
    # q and o: 2·4096·4096; k and v: 2·4096·1024; gate, up and down: 3·4096·14336; 32 layers.
    per_layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert find_model("llama3-8b").linear_params == 32 * per_layer == 6_979_321_856
    # A layer of LLaMA-30B, as Helix measured it.
    assert find_model("LLaMA-30B").linear_params / 60 == pytest.approx(535e6, rel=0.001)


def test_a_configuration_gives_the_model_of_the_table() -> None:
    assert from_hf_config(LLAMA3, "LLaMA3-8B") == find_model("LLaMA3-8B")
    inside = {"model_type": "wrapper", "vision_config": {}, "text_config": LLAMA3}
    assert from_hf_config(inside, "LLaMA3-8B") == find_model("LLaMA3-8B")


def test_a_configuration_of_qwen2_has_biases_without_saying_so() -> None:
    qwen2: dict[str, Any] = {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "sliding_window": 131072,
    }
    assert from_hf_config(qwen2, "Qwen2-7B") == find_model("Qwen2-7B")


def test_a_head_width_of_its_own_counts() -> None:
    # Qwen3-0.6B: 16 heads of 128 on a hidden size of 1024, with norms on q and k; 596,049,920 parameters.
    qwen3 = {
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    model = from_hf_config(qwen3, "Qwen3-0.6B")
    assert model.params == 596_049_920
    assert model.attention_width == 2048


def test_without_kv_heads_every_head_has_its_own() -> None:
    config = {key: value for key, value in LLAMA3.items() if key != "num_key_value_heads"}
    assert from_hf_config(config, "x").kv_heads == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "'x' is a 'mixtral', and figures are known for llama"),
        ({"hidden_size": "4096"}, "configuration of 'x' cannot be read.*hidden_size"),
        ({"num_hidden_layers": None}, "configuration of 'x' cannot be read.*num_hidden_layers"),
    ],
)
def test_other_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_hf_config(LLAMA3 | change, "x")


def test_an_unknown_model_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(ConfigError, match=r"'llama3-7b' is not known; did you mean 'LLaMA3-8B'\? known are LLaMA3-8B"):
        find_model("llama3-7b")
