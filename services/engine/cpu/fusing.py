"""Decoder layers of the Llama kind in a few calls each: fused projections, and C++ for what lies between products.

Whether a layer is of that kind is not read off its class: a fused one is built from the parts it has, and takes its
place only when it calls attention with the same tensors and gives the same answer for random inputs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch

from services.engine.cpu.prepack import PackedLinear
from services.engine.model.attention import AttentionCall, AttentionStep
from services.engine.native.kernels import NO_NORM, Kernels
from services.engine.native.structs import HeadNorm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS: Final = 5
_TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference allowed, relative to the largest number of the tensor."""


class Norm(msgspec.Struct, frozen=True):
    """Divides by the root of the mean square, and multiplies with `weight`."""

    weight: torch.Tensor
    epsilon: float


class _Linear(msgspec.Struct, frozen=True):
    weight: torch.Tensor
    bias: torch.Tensor | None


class LayerParts(msgspec.Struct, frozen=True):
    """What a layer of the Llama kind is made of."""

    norm_before_attention: Norm
    query_norm: Norm | None
    """Of each head, before the rotation; as is `key_norm`."""
    key_norm: Norm | None
    qkv: _Linear
    output: _Linear
    norm_before_mlp: Norm
    gate_and_up: _Linear
    down: _Linear


def fuse_layers(model: "PreTrainedModel", kernels: Kernels) -> int:
    """Replace the decoder layers of `model` that can be; call `prepack.can_pack` first. Returns how many were."""
    decoder: Any = model.get_decoder()
    layers: Any = getattr(decoder, "layers", ())
    fused = 0
    with torch.inference_mode():
        for index, layer in enumerate(layers):
            replacement = _replacement(layer, decoder, kernels)
            if replacement is not None:
                layers[index] = replacement
                fused += 1
    return fused


class FusedLayer(torch.nn.Module):
    """One decoder layer. Works in place on the hidden states it is given."""

    def __init__(self, parts: LayerParts, like: AttentionCall, kernels: Kernels) -> None:
        """`like`: how the layer that this one replaces calls attention."""
        super().__init__()
        self._kernels = kernels
        self.layer, self.scaling, self.window, self.softcap = like.layer, like.scaling, like.window, like.softcap
        self.query_heads, self.kv_heads, self.head_dim = like.query.shape[0], like.key.shape[0], like.query.shape[2]
        self.qkv, self.output, self.gate_and_up, self.down = (
            PackedLinear(part.weight, part.bias) for part in (parts.qkv, parts.output, parts.gate_and_up, parts.down)
        )
        self.norms = (parts.norm_before_attention, parts.norm_before_mlp)
        self.head_norms = (parts.query_norm, parts.key_norm)
        self._native_norms = (native_norm(parts.query_norm), native_norm(parts.key_norm))

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        paged_step: AttentionStep,
        **_: Any,
    ) -> torch.Tensor:
        """As the layer it replaces: [1, tokens, width] in and out, with cosines and sines of [1, tokens, head_dim]."""
        x = hidden_states[0]
        attended = self._attend(self._norm(0, x, None), position_embeddings, paged_step)
        inner = self.gate_and_up(self._norm(1, x, attended))
        x.add_(self.down(self._kernels.silu_and_multiply(inner)))
        return hidden_states

    def _norm(self, which: int, x: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        norm = self.norms[which]
        return self._kernels.rms_norm(x, added, norm.weight, norm.epsilon)

    def _attend(
        self, x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], step: AttentionStep
    ) -> torch.Tensor:
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        cosines, sines = position_embeddings
        self._kernels.rotate(heads, cosines[0], sines[0], (self.query_heads, self.kv_heads), self._native_norms)
        query, key, value = heads.transpose(0, 1).split((self.query_heads, self.kv_heads, self.kv_heads))
        call = AttentionCall(
            layer=self.layer,
            query=query,
            key=key,
            value=value,
            scaling=self.scaling,
            window=self.window,
            softcap=self.softcap,
            extras={},
        )
        output: torch.Tensor = self.output(step.attend(call).reshape(x.shape[0], -1))
        return output


def native_norm(norm: Norm | None) -> HeadNorm:
    """For C++; `norm` must outlive it."""
    return NO_NORM if norm is None else HeadNorm(weight=norm.weight.data_ptr(), epsilon=norm.epsilon)


def _replacement(layer: Any, decoder: Any, kernels: Kernels) -> FusedLayer | None:
    """The fused twin of `layer` of `decoder`, proved; None where it has none."""
    try:
        parts = _parts(layer)
        if parts is None:
            return None
        inputs = _probe_inputs(parts, decoder.rotary_emb)
        expected, call = _run(layer, inputs)
        if not _fits(parts, call):
            return None
        fused = FusedLayer(parts, call, kernels)
        actual, own = _run(fused, inputs)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        # Of another kind: it has other parts, or wants to be called with something else.
        return None
    pairs = ((actual, expected), (own.query, call.query), (own.key, call.key), (own.value, call.value))
    return fused if all(_close(one, other) for one, other in pairs) else None


def _parts(layer: Any) -> LayerParts | None:
    """By the names that the Llama kind has. Raises AttributeError where one is missing, ValueError for odd norms."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if any(type(linear) is not torch.nn.Linear for linear in linears):
        return None
    qkv, gate_and_up = _joined(linears[:3]), _joined(linears[4:6])
    if qkv is None or gate_and_up is None:
        return None
    output, down = (_Linear(linear.weight, linear.bias) for linear in (linears[3], linears[6]))
    dtype, width = qkv.weight.dtype, qkv.weight.shape[1]
    head_norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    query_norm, key_norm = (None if norm is None else _norm(norm, dtype, attention.head_dim) for norm in head_norms)
    return LayerParts(
        norm_before_attention=_norm(layer.input_layernorm, dtype, width),
        query_norm=query_norm,
        key_norm=key_norm,
        qkv=qkv,
        output=output,
        norm_before_mlp=_norm(layer.post_attention_layernorm, dtype, width),
        gate_and_up=gate_and_up,
        down=down,
    )


def _norm(module: Any, dtype: torch.dtype, width: int) -> Norm:
    """Raises ValueError for a weight that is not what C++, which has its address only, takes it for."""
    weight: torch.Tensor = module.weight
    if weight.dtype != dtype or weight.shape != (width,) or not weight.is_contiguous():
        raise ValueError(f"a norm of {list(weight.shape)} numbers of {weight.dtype} among weights of {dtype}")
    return Norm(weight, module.variance_epsilon)


def _joined(linears: Sequence[torch.nn.Linear]) -> _Linear | None:
    """One product in place of several; None where only some have a bias."""
    weights: list[torch.Tensor] = [linear.weight for linear in linears]
    biases: list[torch.Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    if len(biases) not in (0, len(linears)):
        return None
    return _Linear(torch.cat(weights), torch.cat(biases) if biases else None)


class _Recorder:
    """An attention step that keeps its call, and answers with what depends on all of query, key and value."""

    call: AttentionCall

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self.call = call
        repeats = call.query.shape[0] // call.key.shape[0]
        return (call.query + (call.key - call.value).repeat_interleave(repeats, 0)).transpose(0, 1)


class _Inputs(msgspec.Struct, frozen=True):
    hidden: torch.Tensor
    rotation: tuple[torch.Tensor, torch.Tensor]


def _probe_inputs(parts: LayerParts, rotary: Any) -> _Inputs:
    """Random numbers, in tensors of the sizes and types that the layers of the model are given."""
    weight = parts.qkv.weight
    made = torch.Generator().manual_seed(0)
    hidden = torch.randn((1, _PROBE_TOKENS, weight.shape[1]), generator=made).to(weight.dtype)
    # Some rotate in float32, some only a part of each head.
    cosines, sines = (torch.empty_like(own).normal_(generator=made) for own in rotary(hidden, _positions()))
    return _Inputs(hidden, (cosines, sines))


def _positions() -> torch.Tensor:
    return torch.arange(_PROBE_TOKENS).unsqueeze(0)


def _run(layer: Any, inputs: _Inputs) -> tuple[torch.Tensor, AttentionCall]:
    recorder = _Recorder()
    answer = layer(
        inputs.hidden.clone(),
        attention_mask=None,
        position_embeddings=inputs.rotation,
        position_ids=_positions(),
        past_key_values=None,
        use_cache=False,
        paged_step=recorder,
    )
    return answer, recorder.call


def _fits(parts: LayerParts, call: AttentionCall) -> bool:
    """Whether the C++ operations serve tensors of these sizes."""
    weight = parts.down.weight
    half_head = call.query.shape[2] // 2
    return Kernels.serves(weight.dtype, weight.device, *weight.shape, half_head) and weight.dtype in _TOLERANCE


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    if not isinstance(expected, torch.Tensor) or actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    bound = _TOLERANCE[expected.dtype] * expected.abs().max()
    return bool((actual - expected).abs().max() <= bound)
