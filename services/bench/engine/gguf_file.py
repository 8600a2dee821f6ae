"""A GGUF file with the very weights of a model folder, for llama.cpp: tokens in, tokens out, no tokenizer."""

import json
import re
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from services.bench.engine.errors import BenchError

_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(folder: Path, file: Path) -> None:
    """Matrices in bfloat16, rounded as torch rounds them; norms in float32, as llama.cpp wants them.

    Raises BenchError for a model that is not of type llama.
    """
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama":
        raise BenchError(f"a model of type {config['model_type']!r}; only 'llama' is written as GGUF here")
    writer = gguf.GGUFWriter(file, "llama")
    _describe(writer, config)
    for weights in sorted(folder.glob("*.safetensors")):
        with safe_open(weights, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                _add(writer, name, tensors.get_tensor(name), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _add(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, config: dict[str, Any]) -> None:
    target = _OUTSIDE.get(name)
    if target is None:
        match = _LAYER.fullmatch(name)
        if match is None or match[2] not in _IN_LAYER:
            return  # a buffer: rotary frequencies and the like
        target = f"blk.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(match[2])
        if heads is not None:
            tensor = interleaved(tensor, config[heads])
    array: NDArray[np.float32] = tensor.float().numpy()
    if tensor.dim() == 1:
        writer.add_tensor(target, array)
        return
    kind = gguf.GGMLQuantizationType.BF16
    writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from halves to pairs: GGUF's llama rotates neighbours, transformers' rotates halves."""
    halves = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
