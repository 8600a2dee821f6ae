"""What a model's architecture says of its cost: parameters, bytes of weights and of KV.

Dense decoders with gated MLPs (the Llama family): every figure follows from the constants of the configuration.
"""

import difflib
from collections.abc import Mapping
from math import ceil

import msgspec

from common.config.types import DType
from common.errors import ConfigError, ModelError
from common.kv.layout import KVDType

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of model_type in config.json that this arithmetic is right for."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The constants of one architecture, in the words of Hugging Face's config.json."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    """Whether the output projection is the embedding itself."""
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def attention_width(self) -> int:
        """heads · head_dim: the width of a query over all heads."""
        return self.heads * self.head_dim

    @property
    def linear_params(self) -> int:
        """Parameters of the matrix products that every token passes: the layers without embedding and output."""
        kv_width = self.kv_heads * self.head_dim
        attention = 2 * self.hidden * self.attention_width + 2 * self.hidden * kv_width
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def kv_linear_params(self) -> int:
        """Those of `linear_params` that make keys and values."""
        return 2 * self.layers * self.hidden * self.kv_heads * self.head_dim

    @property
    def params(self) -> int:
        """All parameters, a tied embedding once."""
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        norms = (2 * self.layers + 1) * self.hidden + (2 * self.layers * self.head_dim if self.qk_norm else 0)
        bias = self.layers * (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return self.linear_params + embeddings + norms + bias

    def weight_bytes(self, dtype: DType) -> int:
        """Bytes of all parameters in `dtype`."""
        return self.params * KVDType(dtype).size_bytes

    def kv_bytes_per_token(self, dtype: DType) -> int:
        """Bytes of K and V of one token over all layers, in `dtype`."""
        return 2 * self.layers * self.kv_heads * self.head_dim * KVDType(dtype).size_bytes

    # ------------------------------------------------------------ one of tp ranks

    def rank_linear_params(self, tp: int) -> float:
        """Of `linear_params` those of one of `tp` ranks; a KV head is held whole, by several where there are fewer."""
        return (self.linear_params - self.kv_linear_params) / tp + self.kv_linear_params / min(tp, self.kv_heads)

    def rank_weight_bytes(self, dtype: DType, tp: int) -> int:
        """Bytes of the parameters of one of `tp` ranks. Embedding and output are divided by vocabulary; so are norms
        and biases here, which every rank holds whole, and which are below 0.1 % of all.
        """
        of_kv = self.kv_linear_params / min(tp, self.kv_heads)
        return ceil(((self.params - self.kv_linear_params) / tp + of_kv) * KVDType(dtype).size_bytes)

    def rank_kv_bytes_per_token(self, dtype: DType, tp: int) -> int:
        """Bytes of K and V of one token at one of `tp` ranks: no less than one head's."""
        return self.kv_bytes_per_token(dtype) // min(tp, self.kv_heads)


MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(name="LLaMA3-8B", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336,
              vocab=128256),
    ModelSpec(name="Qwen2-7B", layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, intermediate=18944,
              vocab=152064, qkv_bias=True),
    ModelSpec(name="Llama2-7B", layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, intermediate=11008,
              vocab=32000),
    ModelSpec(name="LLaMA-30B", layers=60, hidden=6656, heads=52, kv_heads=52, head_dim=128, intermediate=17920,
              vocab=32000),
    ModelSpec(name="Qwen2.5-32B", layers=64, hidden=5120, heads=40, kv_heads=8, head_dim=128, intermediate=27648,
              vocab=152064, qkv_bias=True),
    ModelSpec(name="Llama2-70B", layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, intermediate=28672,
              vocab=32000),
    ModelSpec(name="Qwen2.5-72B", layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, intermediate=29568,
              vocab=152064, qkv_bias=True),
    ModelSpec(name="SmolLM2-135M", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536,
              vocab=49152, tied=True),
)  # fmt: skip
"""Architecture constants as in the models' public config.json."""


def find_model(name: str) -> ModelSpec:
    """The model of that name in MODELS, whatever the case. Raises ConfigError with the known names."""
    by_name = {model.name.lower(): model for model in MODELS}
    if name.lower() in by_name:
        return by_name[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_name, n=1)
    hint = f"did you mean {by_name[near[0]].name!r}? " if near else ""
    known = ", ".join(model.name for model in MODELS)
    raise ConfigError(f"model {name!r} is not known; {hint}known are {known}; others from their config.json")


class _HfConfig(msgspec.Struct, frozen=True):
    model_type: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False


def from_hf_config(config: Mapping[str, object], name: str) -> ModelSpec:
    """The model of a config.json (the text part of a multi-modal one). Raises ModelError for other families.

    A sliding window is not modelled: KV and steps beyond it come out too dear.
    """
    try:
        found = msgspec.convert(config.get("text_config", config), type=_HfConfig)
    except msgspec.ValidationError as error:
        raise ModelError(f"the configuration of {name!r} cannot be read: {error}") from error
    if found.model_type not in FAMILIES:
        raise ModelError(
            f"{name!r} is a {found.model_type!r}, and figures are known for {', '.join(FAMILIES)}; "
            "measure it with `pdmesh profile`"
        )
    return ModelSpec(
        name=name,
        layers=found.num_hidden_layers,
        hidden=found.hidden_size,
        heads=found.num_attention_heads,
        kv_heads=found.num_key_value_heads or found.num_attention_heads,
        head_dim=found.head_dim or found.hidden_size // found.num_attention_heads,
        intermediate=found.intermediate_size,
        vocab=found.vocab_size,
        tied=found.tie_word_embeddings,
        qkv_bias=found.attention_bias or found.model_type == "qwen2",
        qk_norm=found.model_type == "qwen3",
    )
