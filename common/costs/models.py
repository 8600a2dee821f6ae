"""Linear models of step times. All coefficients are in seconds and seconds per token.

The forms are those of Cronus (arXiv 2509.17357): its Eq. 2 for a whole prompt, its Eq. 3 for a step of chunks and
decodes.  The paper's Eq. 3 has one constant for a filled budget; the term per token is ours, so that steps which do not
fill the budget are priced too.  Steps of decodes alone have a model of their own (ours): they wait for memory where
steps with a chunk compute, and one line through both would be wrong for each.
"""

import msgspec

from common.costs.shape import StepShape


class PrefillCost(msgspec.Struct, frozen=True):
    """`T_pre(L) = per_token·L + base`: a prompt of L tokens in one step, alone (k_p and b_p of Eq. 2)."""

    base: float
    per_token: float

    def seconds(self, tokens: int) -> float:
        """0 for no tokens: no step is made."""
        return self.base + self.per_token * tokens if tokens > 0 else 0.0


class MixedStepCost(msgspec.Struct, frozen=True):
    """A step with at least one chunk: `base + per_token·(chunk tokens + decodes) + per_chunk_context·ctx_p
    + per_decode_context·Σ ctx_d` (b_c, k_cn, k_cp and k_cd of Eq. 3; with the budget C filled, b_c + k_cn·C is the
    paper's constant).
    """

    base: float
    per_token: float
    per_chunk_context: float
    per_decode_context: float

    def seconds(self, shape: StepShape) -> float:
        """Seconds of one step."""
        return (
            self.base
            + self.per_token * shape.tokens
            + self.per_chunk_context * shape.chunk_context
            + self.per_decode_context * shape.decode_context
        )


class DecodeStepCost(msgspec.Struct, frozen=True):
    """A step of decodes alone: `base + per_sequence·n + per_context·Σ ctx_d`."""

    base: float
    per_sequence: float
    per_context: float

    def seconds(self, sequences: int, context: int) -> float:
        """Seconds of one step of `sequences` decodes whose contexts sum to `context` tokens."""
        return self.base + self.per_sequence * sequences + self.per_context * context


class InstanceCosts(msgspec.Struct, frozen=True):
    """What the steps of one instance cost, whatever its role."""

    prefill: PrefillCost
    mixed: MixedStepCost
    decode: DecodeStepCost

    def step_seconds(self, shape: StepShape) -> float:
        """Seconds of a step of an instance that mixes chunks with decodes."""
        if shape.chunk_tokens:
            return self.mixed.seconds(shape)
        return self.decode.seconds(shape.decodes, shape.decode_context) if shape.decodes else 0.0

    def scaled(self, factor: float) -> "InstanceCosts":
        """The same instance when everything on it takes `factor` times as long."""
        prefill, mixed, decode = self.prefill, self.mixed, self.decode
        return InstanceCosts(
            prefill=PrefillCost(prefill.base * factor, prefill.per_token * factor),
            mixed=MixedStepCost(
                mixed.base * factor,
                mixed.per_token * factor,
                mixed.per_chunk_context * factor,
                mixed.per_decode_context * factor,
            ),
            decode=DecodeStepCost(decode.base * factor, decode.per_sequence * factor, decode.per_context * factor),
        )
