"""How long the steps of a simulated device take."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec


class DecodeLine(msgspec.Struct, frozen=True):
    """The seconds of steps of decodes alone, for one number of sequences: `base + per_context · Σ contexts`."""

    base: float
    per_context: float


class StepTimer(ABC):
    """The time model of one device. Pure: the same step takes the same time.

    The truth of a simulation; what a policy believes is the costs that its instances register, fitted to such a truth.
    """

    @abstractmethod
    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        """Seconds of one step.

        `chunks` holds (tokens computed now, tokens computed before) for each prompt in the step; `decodes` sequences
        compute one token each, and `decode_context` is the sum of their context lengths before it.
        """

    @abstractmethod
    def decode_line(self, decodes: int) -> DecodeLine:
        """The same for a step without chunks and with `decodes` ≥ 1 sequences, as a line in the contexts.

        `decode_line(n).base + decode_line(n).per_context · c == step_seconds((), n, c)` for every c: runs of such steps
        are summed in closed form.
        """
