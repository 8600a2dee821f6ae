"""Tiny random models with the attention of the big ones, and a way to run sequences over scattered blocks."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from common.errors import ModelError
from common.kv.layout import KVOrder
from common.messages.sampling import SamplingParams
from services.engine.model.torch_runner import TorchRunner, build_runner
from services.engine.native.kernels import Kernels
from services.engine.runner import Sampled, SampleRequest, StepItem

VOCAB = 97
WINDOW = 8
"""Shorter than every prompt of the tests."""

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large enough that attention is not uniform, small enough that it does not settle on one token.
    "initializer_range": 0.15,
}
_SLIDING_QWEN: dict[str, object] = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "max_window_layers": 1,
    "head_dim": 16,
}

_WIDE: dict[str, object] = {"head_dim": 32}
"""Wide enough for the C++ kernels, which handle 16 elements at a time, and half a head at least."""

WIDE_MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama-wide": ("Llama", _WIDE),
    "llama-one-head": ("Llama", {**_WIDE, "hidden_size": 112, "num_key_value_heads": 1, "num_attention_heads": 7}),
    "qwen2-wide": ("Qwen2", {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}),
    "mistral-wide": ("Mistral", {**_WIDE, "sliding_window": WINDOW}),
    "qwen3-wide": ("Qwen3", {**_SLIDING_QWEN, **_WIDE}),
}
"""Models whose layers are fused where there are kernels."""

MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama-mha": ("Llama", {"num_key_value_heads": 6}),
    "llama-gqa": ("Llama", {}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", _SLIDING_QWEN),
    "mistral": ("Mistral", {"sliding_window": WINDOW, "head_dim": 12}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": WINDOW,
            "head_dim": 16,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "sliding_window": WINDOW,
            "head_dim": 16,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    # Layers of the Llama kind but for one thing: half of each head is rotated.
    "glm4-moe": (
        "Glm4Moe",
        {
            "head_dim": 64,
            "first_k_dense_replace": 3,
            "use_qk_norm": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
}


def make_model(family: str, overrides: dict[str, object], attention: str = "eager") -> PreTrainedModel:
    """A random model; two calls with equal arguments give equal weights."""
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    config = config_class(**{**_COMMON, **overrides}, attn_implementation=attention)
    torch.manual_seed(7)
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config)
    return model.eval()


class RecordingSampler:
    """Keeps the logits of the last step and answers with the likeliest token."""

    def __init__(self) -> None:
        self.logits = torch.empty(0)

    def sample(self, logits: torch.Tensor, requests: Sequence[SampleRequest]) -> list[tuple[Sampled, ...]]:
        assert len(logits) == len(requests)
        self.logits = logits
        return [
            tuple(Sampled(token=int(row.argmax())) for _ in request.choices)
            for row, request in zip(logits, requests, strict=True)
        ]


class Sequences:
    """Sequences over the shuffled blocks of one runner; nothing tells where a block lies."""

    def __init__(self, runner: TorchRunner, sampler: RecordingSampler, seed: int = 0) -> None:
        self.runner = runner
        self._sampler = sampler
        self._free = list(range(runner.num_blocks))
        random.Random(seed).shuffle(self._free)

    def blocks(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self._free.pop() for _ in range(self.runner.layout.blocks_for(num_tokens)))

    def step(
        self, *parts: tuple[Sequence[int], int, int, Sequence[int]], on_layer: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Compute tokens [start, stop) of each (tokens, start, stop, blocks); the logits after each."""
        items = [
            StepItem(tokens=tokens[start:stop], start=start, blocks=blocks, sample=sample_request(stop))
            for tokens, start, stop, blocks in parts
        ]
        sampled = self.runner.run(items, on_layer)
        assert [len(choices) for choices in sampled] == [1] * len(parts)
        return self._sampler.logits


def sample_request(position: int, **changes: object) -> SampleRequest:
    fields = {"params": SamplingParams(temperature=0), "choices": (0,), "prompt": (), "output": ()}
    return SampleRequest(**{**fields, "position": position, **changes})  # type: ignore[arg-type]


class Subject:
    """A model, its logits by transformers' own forward, and runners over the same weights."""

    def __init__(self, name: str, kernels: Kernels | None = None) -> None:
        family, overrides = (MODELS | WIDE_MODELS)[name]
        self._kernels = kernels
        self._reference = make_model(family, overrides)
        self._served = make_model(family, overrides)

    def to(self, device: str) -> "Subject":
        self._reference.to(device)
        self._served.to(device)
        return self

    def prompt(self, length: int, seed: int = 0) -> tuple[int, ...]:
        return tuple(random.Random(seed).choices(range(VOCAB), k=length))

    def reference(self, tokens: Sequence[int]) -> torch.Tensor:
        """[len(tokens), vocabulary]"""
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._reference.device)
            logits: torch.Tensor = self._reference(ids, use_cache=False).logits
        return logits[0].float()

    def sequences(
        self, block_size: int = 3, order: KVOrder = KVOrder.NHD, seed: int = 0, num_tokens: int = 256
    ) -> Sequences:
        """A runner whose cache starts full of NaN, so that reading one slot never written shows in every logit."""
        config = self._served.config
        sampler = RecordingSampler()
        token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * 4
        token_bytes *= getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        runner = build_runner(
            self._served,
            sampler,
            fingerprint="tiny",
            block_size=block_size,
            order=order,
            kv_memory_bytes=token_bytes * -(-num_tokens // block_size) * block_size,
            kernels=self._kernels,
        )
        for cache in (*runner.kv.keys, *runner.kv.values):
            cache.fill_(float("nan"))
        return Sequences(runner, sampler, seed)


def refusal(family: str, overrides: dict[str, object]) -> str:
    """What build_runner says against a model of this configuration."""
    model = make_model(family, overrides)
    with pytest.raises(ModelError) as refused:
        build_runner(
            model, RecordingSampler(), fingerprint="x", block_size=4, order=KVOrder.NHD, kv_memory_bytes=1 << 20
        )
    return str(refused.value)
