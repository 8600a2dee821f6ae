"""Step times from the linear models that a profile holds."""

from collections.abc import Sequence

from common.costs.models import InstanceCosts
from common.errors import ConfigError
from common.messages.control import Role
from services.simulator.engine.timing import DecodeLine, StepTimer


class FittedTimer(StepTimer):
    """The time model of an instance whose costs are known, by its role.

    A prefill instance computes whole prompts (or the first part of one) in a step of their own: those cost what its
    PrefillCost says.  Every other step costs what the models of mixed and decode steps say.
    """

    def __init__(self, costs: InstanceCosts, role: Role) -> None:
        self._costs = costs
        self._role = role
        self._prefill = costs.prefill if role is Role.PREFILL else None

    def scaled(self, slowdown: float) -> "FittedTimer":
        """The same instance when each step takes `slowdown` (above 0) times as long. Raises ConfigError."""
        if not 0 < slowdown < float("inf"):
            raise ConfigError(f"slowdown is {slowdown!r}; give a factor above 0, such as 3.0 for a third of the speed")
        return FittedTimer(self._costs.scaled(slowdown), self._role)

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        """As StepTimer says; 0 for a step of no tokens, for none is made."""
        if not chunks:
            return self._costs.decode.seconds(decodes, decode_context) if decodes else 0.0
        if self._prefill is not None and len(chunks) == 1 and not decodes and not chunks[0][1]:
            return self._prefill.seconds(chunks[0][0])
        tokens = decodes
        context = 0
        for computed, before in chunks:
            tokens += computed
            context += before
        mixed = self._costs.mixed
        # As MixedStepCost.seconds, without a StepShape for each of millions of steps.
        return (
            mixed.base
            + mixed.per_token * tokens
            + mixed.per_chunk_context * context
            + mixed.per_decode_context * decode_context
        )

    def decode_line(self, decodes: int) -> DecodeLine:
        """As StepTimer says."""
        decode = self._costs.decode
        return DecodeLine(decode.base + decode.per_sequence * decodes, decode.per_context)
