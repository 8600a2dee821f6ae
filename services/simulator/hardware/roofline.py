"""Step times from the specification of a device: what it computes against what it reads."""

from collections.abc import Sequence

from common.config.types import DType
from common.kv.layout import KVDType
from services.simulator.engine.timing import DecodeLine, StepTimer
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.interconnect import all_reduce_s_per_byte, all_reduce_start_s, machine_link
from services.simulator.hardware.models import ModelSpec
from services.simulator.links import LinkSpec

ATTENTION_SHARE = 0.6
"""Attention over prompts runs at this share of the effective rate of matrix products. Ours."""
ALL_REDUCES = 2
"""Of each layer under tensor parallelism: after attention and after the MLP (Shoeybi et al., Megatron-LM, 2019)."""


class RooflineTimer(StepTimer):
    """The time of one step of a device that serves a whole model alone, in seconds:

        max(2·P·n / F, W / B)                    matrix products, or reading the weights: the roofline
        + Σ over chunks 4·H·L·(c·x + c²/2) / (0.6·F)      attention of c tokens after x
        + (Σ decode contexts + Σ x)·kv / B       reading the KV of earlier tokens
        + overhead

    P parameters of the layers' matrix products, n tokens of the step, W bytes of weights, F and B the effective rates
    (published × efficiency), H = heads·head_dim, L layers, kv bytes of KV per token.

    2·P·n counts a multiplication and an addition per parameter and token; 4·H·L·… the two products of causal attention
    (scores and sums, 2·H operations each per pair of tokens).  The maximum is the roofline model of Williams et al.
    (Communications of the ACM 52(4), 2009).  That the terms are summed otherwise, the 0.6, and the one overhead are
    ours.  Left out: the output projection (W contains it), attention of decodes beyond reading its KV, and any
    difference between kernels.

    As one of `tp` devices of a tensor-parallel group it has a tp-th of P, W and H, but never less than one KV head of
    the parameters and bytes of KV, and each step has 2·L all-reduces of n activations more (hardware/interconnect.py).
    """

    def __init__(
        self, device: DeviceSpec, model: ModelSpec, dtype: DType, *, tp: int = 1, link: LinkSpec | None = None
    ) -> None:
        """`tp` must suit the model (hardware/strategy.py); `link` of a device of the group to the next, None:
        machine_link's.  Raises ConfigError for a dtype that the device cannot compute in or whose rate is not known.
        """
        device.require_dtype(dtype)
        flops, bytes_per_s = device.flops, device.bytes_per_s
        link = link or machine_link(device, tp)
        all_reduces = ALL_REDUCES * model.layers
        activation_bytes = model.hidden * KVDType(dtype).size_bytes
        self._per_token = 2 * model.rank_linear_params(tp) / flops
        self._weights = model.rank_weight_bytes(dtype, tp) / bytes_per_s
        self._per_pair = 4 * model.attention_width * model.layers / (ATTENTION_SHARE * flops) / tp
        self._per_context = model.rank_kv_bytes_per_token(dtype, tp) / bytes_per_s
        self._per_token_reduced = all_reduces * activation_bytes * all_reduce_s_per_byte(tp, link)
        self._overhead = device.step_overhead_s + all_reduces * all_reduce_start_s(tp, link)

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        """As StepTimer says; 0 for a step of no tokens, for none is made."""
        tokens = decodes
        context = decode_context
        pairs = 0.0
        for computed, before in chunks:
            tokens += computed
            context += before
            pairs += computed * (before + 0.5 * computed)
        if tokens == 0:
            return 0.0
        compute = self._per_token * tokens
        base = (compute if compute > self._weights else self._weights) + self._per_pair * pairs + self._overhead
        return base + self._per_context * context + self._per_token_reduced * tokens

    def decode_line(self, decodes: int) -> DecodeLine:
        """As StepTimer says: the contexts of decodes only add the reading of their KV."""
        base = max(self._per_token * decodes, self._weights) + self._overhead + self._per_token_reduced * decodes
        return DecodeLine(base, self._per_context)
