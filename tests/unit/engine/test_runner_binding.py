"""What a model's KV looks like, and which models are refused with which words."""

import pytest
import torch
from transformers import PreTrainedConfig

from common.errors import ConfigError, ModelError
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from services.engine.model.binding import layout_of
from services.engine.model.torch_runner import TorchRunner, build_runner
from services.engine.runner import StepItem
from tests.unit.engine.tiny_models import MODELS, VOCAB, RecordingSampler, make_model, refusal, sample_request


def layout_for(config: PreTrainedConfig) -> KVLayout:
    return layout_of(config, fingerprint="f", dtype=KVDType.BFLOAT16, block_size=16, order=KVOrder.HND)


def build(family: str = "Llama", dtype: torch.dtype = torch.float32, kv_memory_bytes: int = 1 << 20) -> TorchRunner:
    return build_runner(
        make_model(family, {}).to(dtype),
        RecordingSampler(),
        fingerprint="f",
        block_size=4,
        order=KVOrder.NHD,
        kv_memory_bytes=kv_memory_bytes,
    )


def test_layout_of_a_model_whose_heads_divide_its_width() -> None:
    assert layout_for(make_model("Llama", {}).config) == KVLayout(
        model="f",
        dtype=KVDType.BFLOAT16,
        block_size=16,
        order=KVOrder.HND,
        layers=Interval(0, 3),
        heads=Interval(0, 2),
        head_dim=8,
    )


def test_layout_of_a_model_with_a_head_dim_of_its_own() -> None:
    assert layout_for(make_model(*MODELS["gemma3"]).config).head_dim == 16


def test_layout_of_a_model_that_knows_no_kv_heads() -> None:
    config = PreTrainedConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
    layout = layout_for(config)
    assert (layout.heads, layout.head_dim) == (Interval(0, 4), 8)


def test_kv_heads_that_differ_per_layer_are_refused() -> None:
    config = PreTrainedConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=[2, 1], num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"says \[2, 1\] for the KV heads.*one number for all layers"):
        layout_for(config)


def test_runner_describes_itself() -> None:
    runner = build()
    assert (runner.vocab_size, runner.context_length, runner.layout.dtype) == (VOCAB, 128, KVDType.FLOAT32)
    assert runner.num_blocks == (1 << 20) // (4 * runner.layout.token_bytes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """Close to the same weights' float32 answer, within what 16 bits allow; sampled from float32 logits."""
    prompt = list(range(3, 20))
    logits = []
    for kind in (torch.float32, dtype):
        sampler = RecordingSampler()
        model = make_model("Llama", {}).to(dtype).to(kind)
        runner = build_runner(model, sampler, fingerprint="f", block_size=4, order=KVOrder.NHD, kv_memory_bytes=1 << 20)
        for start, stop in ((0, 9), (9, 16), (16, 17)):
            runner.run([_sampling_item(prompt[start:stop], start)])
        assert runner.kv.keys[0].dtype == kind
        logits.append(sampler.logits)
    assert logits[1].dtype == torch.float32
    torch.testing.assert_close(logits[1], logits[0], atol=0.1, rtol=0)


def _sampling_item(tokens: list[int], start: int) -> StepItem:
    return StepItem(tokens=tokens, start=start, blocks=range(8), sample=sample_request(start + len(tokens)))


def test_float64_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'float64'.*float32, bfloat16 or float16"):
        build(dtype=torch.float64)


def test_memory_for_less_than_one_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1000 bytes holds no block.*takes 1536 bytes.*raise kv_memory"):
        build(kv_memory_bytes=1000)


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ("Llama", {"num_kv_shared_layers": 1}, "1 of its layers share the KV of others"),
        ("Gemma3", {"use_bidirectional_attention": True}, "not causal"),
        ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}, "s_aux"),
        ("Qwen3Next", {"layer_types": ["linear_attention", "full_attention", "full_attention"]}, "linear_attention"),
        ("DeepseekV3", {"first_k_dense_replace": 3}, "its config says"),
        ("Mamba", {}, "linear_attention"),
        ("Mamba", {"num_attention_heads": None, "num_key_value_heads": None}, "says None for the attention heads"),
        ("Mpt", {"n_layers": 1, "n_heads": 4, "d_model": 16}, "does not support transformers' attention interface"),
    ],
)
def test_models_that_cannot_be_exact_are_refused(family: str, overrides: dict[str, object], reason: str) -> None:
    message = refusal(family, overrides)
    assert message.startswith("models of type '")
    assert reason in message


def test_token_beyond_the_vocabulary_is_refused_before_anything_is_computed() -> None:
    runner = build()
    with pytest.raises(ValueError, match=r"token id 97; .* \[0, 97\)"):
        runner.run([StepItem(tokens=(3, VOCAB), start=0, blocks=(0,))])
    assert not any(keys.any() for keys in runner.kv.keys)
