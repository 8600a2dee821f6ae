"""What one step computes, as far as its time depends on it."""

import msgspec


class StepShape(msgspec.Struct, frozen=True):
    """The sums of one step. A step of one whole prompt of L tokens is StepShape(chunk_tokens=L)."""

    chunk_tokens: int = 0
    """Prompt tokens computed in this step, over all prompts."""
    chunk_context: int = 0
    """Tokens computed before this step of the prompts that have a chunk in it, summed over them (ctx_p)."""
    decodes: int = 0
    """Sequences that compute one token each."""
    decode_context: int = 0
    """Context lengths of those sequences, summed (Σ ctx_d)."""

    @property
    def tokens(self) -> int:
        """Tokens of the step: with the budget filled, the budget."""
        return self.chunk_tokens + self.decodes

    def is_empty(self) -> bool:
        """Whether nothing is computed."""
        return self.tokens == 0
