"""Steps of a few decodes in one C++ call, where the model is an embedding, fused layers, a norm and a head.

A step of one row reads every weight once and computes next to nothing: what it costs beyond that is time between the
products. Here there is none but the meeting of the threads.
"""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from services.engine.cpu.fusing import FusedLayer, Norm, native_norm
from services.engine.cpu.prepack import PackedLinear
from services.engine.kv.paged_kv import PagedKV
from services.engine.native.kernels import LANES, Kernels
from services.engine.native.paged import Contexts, address_of, check_range, geometry
from services.engine.native.structs import Layer, Matrix, Step
from services.engine.step_plan import StepPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FEWEST_POSITIONS = 1024


class ModelParts(msgspec.Struct, frozen=True):
    """What a model that is served here consists of."""

    embedding: torch.Tensor
    layers: tuple[FusedLayer, ...]
    norm: Norm
    head: PackedLinear
    rotation: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    """Cosines and sines, each [1, positions, head_dim], for a tensor of the wanted type and [1, positions]."""


def model_parts(model: "PreTrainedModel") -> ModelParts | None:
    """By the names that the Llama kind has; None where one is missing, or is what no step here can compute.

    That a model puts them together as a step does, names do not tell: see few_rows_check.
    """
    decoder: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    try:
        embedding, norm, rotation = decoder.embed_tokens, decoder.norm, decoder.rotary_emb
        layers = tuple(decoder.layers)
        parts = ModelParts(embedding.weight, layers, Norm(norm.weight, norm.variance_epsilon), head, rotation)
    except AttributeError:
        return None
    is_served = (
        type(embedding) is torch.nn.Embedding
        and type(head) is PackedLinear
        and head.panels is not None
        and (head.bias is None or head.out_features % LANES == 0)
        and all(map(_is_served, layers))
        and len(set(map(_sizes, layers))) == 1
        and _fits_together(parts)
    )
    return parts if is_served else None


def _fits_together(parts: ModelParts) -> bool:
    """Sizes and types: C++ reads as much as it is told, of the one type it is told."""
    layer, width = parts.layers[0], parts.embedding.shape[1]
    queries, keys = layer.query_heads * layer.head_dim, layer.kv_heads * layer.head_dim
    shapes = [(linear.in_features, linear.out_features) for linear in _linears(layer)]
    inner = layer.down.in_features
    norms = [parts.norm, *(norm for one in parts.layers for norm in one.norms)]
    head_norms = [norm for one in parts.layers for norm in one.head_norms if norm is not None]
    position = torch.zeros((1, 1), dtype=torch.int64)
    rotation = [table[0] for table in parts.rotation(parts.embedding[None, :1], position)]
    tensors = [parts.embedding, *rotation, *(norm.weight for norm in (*norms, *head_norms))]
    biases = [linear.bias for one in parts.layers for linear in _linears(one)] + [parts.head.bias]
    return (
        shapes == [(width, queries + 2 * keys), (queries, width), (width, 2 * inner), (inner, width)]
        and parts.head.in_features == width
        and all(norm.weight.shape == (width,) for norm in norms)
        and all(norm.weight.shape == (layer.head_dim,) for norm in head_norms)
        and all(table.shape == (1, layer.head_dim) for table in rotation)
        and all(tensor.is_contiguous() for tensor in tensors)
        and len({tensor.dtype for tensor in (*tensors, *biases) if tensor is not None}) == 1
    )


def _linears(layer: FusedLayer) -> tuple[PackedLinear, ...]:
    return layer.qkv, layer.output, layer.gate_and_up, layer.down


def _sizes(layer: FusedLayer) -> tuple[int, ...]:
    shapes = ((linear.in_features, linear.out_features) for linear in _linears(layer))
    return (layer.query_heads, layer.kv_heads, layer.head_dim, *(size for shape in shapes for size in shape))


def _is_served(layer: torch.nn.Module) -> bool:
    if not isinstance(layer, FusedLayer) or layer.softcap is not None:
        return False
    if any(linear.panels is None or linear.out_features % LANES for linear in _linears(layer)):
        return False
    panels = layer.gate_and_up.panels
    # A thread takes a panel of gate and the one of up that belongs to it.
    return panels is not None and layer.down.in_features % panels.width == 0


class FewRows:
    """Computes steps of up to `most_rows` decodes of one model over one cache. One thread calls it."""

    def __init__(self, parts: ModelParts, kv: PagedKV, kernels: Kernels) -> None:
        # Fixed here: each thread has a part of the scratch memory.
        threads = torch.get_num_threads()
        self.most_rows = kernels.most_rows(threads)
        self._parts = parts
        self._kv = kv
        self._kernels = kernels
        self._rotation = _Rotation(parts, kv)
        self._layers = (Layer * len(parts.layers))(*(_layer(layer, kv) for layer in parts.layers))
        first = parts.layers[0]
        self._scratch = _scratch(first, self.most_rows, threads, kv.dtype)
        self._step = Step(
            layers=ctypes.addressof(self._layers),
            embedding=parts.embedding.data_ptr(),
            norm=parts.norm.weight.data_ptr(),
            epsilon=parts.norm.epsilon,
            head=_matrix(parts.head),
            num_layers=len(parts.layers),
            width=parts.embedding.shape[1],
            groups=first.query_heads // first.kv_heads,
            threads=threads,
            **{name: memory.data_ptr() for name, memory in self._scratch.items()},
            **geometry(kv),
        )

    def serves(self, plan: StepPlan) -> bool:
        """Whether `logits` computes this step."""
        return not plan.chunks and len(plan.tokens) <= self.most_rows

    def logits(self, plan: StepPlan, rows: Sequence[int]) -> torch.Tensor:
        """Logits of these rows of `plan`, [len(rows), vocabulary], float32; writes the KV of all rows.

        Raises ValueError for a token, a slot or a block that there is not; then nothing is written.
        """
        kv, step = self._kv, self._step
        check_range("token", plan.tokens, self._parts.embedding.shape[0])
        check_range("slot", plan.slots, kv.num_blocks * kv.layout.block_size)
        contexts = Contexts(kv, plan.decodes)
        tokens, slots, sampled = (array("q", numbers) for numbers in (plan.tokens, plan.slots, rows))
        cosines, sines = self._rotation.until(max(plan.positions) + 1)
        logits = torch.empty((len(rows), self._parts.head.out_features), dtype=torch.float32)
        step.rows, step.samples = len(tokens), len(sampled)
        step.tokens, step.slots, step.sampled = address_of(tokens), address_of(slots), address_of(sampled)
        step.positions = address_of(contexts.positions)
        step.tables, step.table_starts = address_of(contexts.tables), address_of(contexts.starts)
        step.cosines, step.sines = cosines.data_ptr(), sines.data_ptr()
        step.logits = logits.data_ptr()
        self._kernels.step(step)
        return logits


class _Rotation:
    """Cosines and sines of all positions up to the highest asked for so far: one row of head_dim for each."""

    def __init__(self, parts: ModelParts, kv: PagedKV) -> None:
        self._compute = parts.rotation
        self._like = torch.empty((1, 1, kv.layout.head_dim), dtype=kv.dtype)
        self._tables = (self._like[0, :0], self._like[0, :0])

    def until(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """At least that many rows of both."""
        if len(self._tables[0]) < positions:
            count = max(_FEWEST_POSITIONS, 1 << (positions - 1).bit_length())
            cosines, sines = self._compute(self._like, torch.arange(count).unsqueeze(0))
            self._tables = (cosines[0].contiguous(), sines[0].contiguous())
        return self._tables


def _layer(layer: FusedLayer, kv: PagedKV) -> Layer:
    index = layer.layer - kv.layout.layers.start
    before_attention, before_mlp = layer.norms
    query_norm, key_norm = map(native_norm, layer.head_norms)
    return Layer(
        norm_before_attention=before_attention.weight.data_ptr(),
        norm_before_mlp=before_mlp.weight.data_ptr(),
        epsilon_before_attention=before_attention.epsilon,
        epsilon_before_mlp=before_mlp.epsilon,
        query_norm=query_norm,
        key_norm=key_norm,
        keys=kv.keys[index].data_ptr(),
        values=kv.values[index].data_ptr(),
        qkv=_matrix(layer.qkv),
        output=_matrix(layer.output),
        gate_and_up=_matrix(layer.gate_and_up),
        down=_matrix(layer.down),
        window=layer.window or 0,
        scaling=layer.scaling,
    )


def _matrix(linear: PackedLinear) -> Matrix:
    assert linear.panels is not None  # see model_parts
    return Matrix(
        weight=linear.panels.address,
        bias=None if linear.bias is None else linear.bias.data_ptr(),
        outputs=linear.out_features,
        inputs=linear.in_features,
        width=linear.panels.width,
        padded_inputs=linear.panels.padded_inputs,
    )


def _scratch(layer: FusedLayer, rows: int, threads: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    widths = {
        "hidden": layer.output.out_features,
        "mixed": layer.qkv.out_features,
        "attended": layer.output.in_features,
        "inner": layer.down.in_features,
        "normed": layer.output.out_features * threads,
    }
    return {name: torch.zeros(rows * width, dtype=dtype) for name, width in widths.items()}
