"""From a loaded Hugging Face model to a runner: what its KV looks like, and whether it can be served exactly."""

from typing import TYPE_CHECKING, Any

import torch

from common.errors import ModelError
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from services.engine.model.attention import ATTENTION_NAME, AttentionCall, register_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_LAYER_TYPES = ("full_attention", "sliding_attention")
_ROPE_TYPES_OF_THE_BATCH = ("dynamic", "longrope")
_HARMLESS_KEYWORDS = ("position_ids", "is_causal", "position_embeddings")
"""Keywords that models hand to attention and that do not change what a token attends to."""


def layout_of(
    config: "PreTrainedConfig",
    *,
    fingerprint: str,
    dtype: KVDType,
    block_size: int,
    order: KVOrder,
    device: str = "cpu",
) -> KVLayout:
    """The KV cache of a whole model (one rank), from its configuration.

    Raises ModelError when the configuration names no attention heads, or other KV heads for each layer.
    """
    text = config.get_text_config(decoder=True)
    query_heads: Any = getattr(text, "num_attention_heads", None)
    kv_heads: Any = getattr(text, "num_key_value_heads", None) or query_heads
    for name, heads in (("attention heads", query_heads), ("KV heads", kv_heads)):
        if not isinstance(heads, int):
            raise _refusal(
                text, f"its config says {heads!r} for the {name}; this engine needs one number for all layers"
            )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // query_heads
    return KVLayout(
        model=fingerprint,
        dtype=dtype,
        block_size=block_size,
        order=order,
        layers=Interval(0, text.num_hidden_layers),
        heads=Interval(0, kv_heads),
        head_dim=head_dim,
        device=device,
    )


def bind(model: "PreTrainedModel", layout: KVLayout) -> None:
    """Switch `model` to paged attention and prove, by one forward of two tokens, that every layer uses it as `layout`
    says. Raises ModelError, naming the model type and the reason, for a model that cannot be served exactly.
    """
    text: Any = model.config.get_text_config(decoder=True)
    refusal = _refused_by_config(model, text)
    if refusal is None:
        register_attention()
        model.set_attn_implementation(ATTENTION_NAME)
        model.eval()
        refusal = _refused_by_probe(model, text, layout)
    if refusal is not None:
        raise _refusal(text, refusal)


def _refusal(text: Any, reason: str) -> ModelError:
    return ModelError(f"models of type {text.model_type!r} cannot be served: {reason}")


def context_length_of(config: "PreTrainedConfig") -> int:
    """Most positions of one sequence."""
    length: int = config.get_text_config(decoder=True).max_position_embeddings
    return length


def _refused_by_config(model: "PreTrainedModel", text: Any) -> str | None:
    layer_types = getattr(text, "layer_types", None) or ()
    other_layers = sorted({kind for kind in layer_types if kind not in _LAYER_TYPES})
    if getattr(model.config, "is_encoder_decoder", False):
        return "it has an encoder; this engine serves decoder-only models"
    if other_layers:
        return f"it has layers of type {', '.join(other_layers)}; this engine serves {' and '.join(_LAYER_TYPES)}"
    if not model._supports_attention_backend:
        return "it does not support transformers' attention interface"
    if getattr(text, "num_kv_shared_layers", 0):
        return f"{text.num_kv_shared_layers!r} of its layers share the KV of others"
    if getattr(text, "use_bidirectional_attention", False):
        return "its attention is not causal"
    if rope := _ropes_of_the_batch(text):
        return f"rope type {rope!r} rotates a token by the longest sequence of its batch, so answers would depend on it"
    return None


def _ropes_of_the_batch(text: Any) -> str | None:
    parameters = getattr(text, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in (parameters, *by_layer_type):
        if (kind := rope.get("rope_type")) in _ROPE_TYPES_OF_THE_BATCH:
            return str(kind)
    return None


def _refused_by_probe(model: "PreTrainedModel", text: Any, layout: KVLayout) -> str | None:
    probe = _Probe()
    ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    positions = torch.arange(2, device=model.device).unsqueeze(0)
    keep = torch.tensor([1], device=model.device)
    with torch.inference_mode():
        model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep, paged_step=probe)
    layers = [call.layer for call in probe.calls]
    expected = list(range(layout.layers.start, layout.layers.stop))
    if layers != expected:
        return f"layers {layers!r} attend, in this order, where {expected!r} must; it has layers of another kind"
    reasons = (_refused_by_call(call, text, layout) for call in probe.calls)
    return next((reason for reason in reasons if reason is not None), None)


def _refused_by_call(call: AttentionCall, text: Any, layout: KVLayout) -> str | None:
    kv_shape = (len(layout.heads), 2, layout.head_dim)
    where = f"layer {call.layer}"
    for name, tensor in (("keys", call.key), ("values", call.value)):
        if tuple(tensor.shape) != kv_shape:
            return (
                f"{where} has {name} of [heads, tokens, head_dim] {tuple(tensor.shape)!r}; its config says {kv_shape!r}"
            )
        if tensor.dtype != getattr(torch, layout.dtype.value):
            return f"{where} has {name} of {tensor.dtype}; the KV cache holds {layout.dtype.value}"
    if unknown := sorted(
        name
        for name, value in call.extras.items()
        if name not in _HARMLESS_KEYWORDS and value is not None and value is not False
    ):
        return f"{where} passes {', '.join(unknown)} to its attention, which this engine does not apply"
    layer_types = getattr(text, "layer_types", None)
    if layer_types is None:
        return None
    window = text.sliding_window if layer_types[call.layer] == "sliding_attention" else None
    if call.window != window:
        return (
            f"{where} is of type {layer_types[call.layer]} but attends with a window of {call.window!r}, not {window!r}"
        )
    return None


class _Probe:
    """An attention step that only records how it is called."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self.calls.append(call)
        # Heads of the values, repeated: the shape that the layer expects back.
        repeats = call.query.shape[0] // call.value.shape[0]
        return call.value.repeat_interleave(repeats, 0).transpose(0, 1)
