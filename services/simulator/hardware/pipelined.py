"""Stages in a row: how long one step takes through all of them, and how often one can follow another."""

from collections.abc import Sequence

from services.simulator.engine.timing import DecodeLine, StepTimer
from services.simulator.links import LinkSpec

TOKEN_BYTES = 8
"""One sampled token on its way back to the first stage: an int64."""


class PipelinedTimer(StepTimer):
    """The time of one step through `stages`, from the first until its sampled tokens are back there: the sum of all
    stages, with a hand-over of the activations between neighbours.

    What pipeline_line makes of a step that meets no other one.
    """

    def __init__(
        self, stages: Sequence[StepTimer], layers: Sequence[int], link: LinkSpec, bytes_per_token: int
    ) -> None:
        """`layers` of each stage; `bytes_per_token` that one token sends from stage to stage, over `link`."""
        self.stages = tuple(stages)
        self.layers = tuple(layers)
        self.link = link
        self.bytes_per_token = bytes_per_token

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        """As StepTimer says; 0 for a step of no tokens, for none is made."""
        tokens = decodes + sum(computed for computed, _ in chunks)
        if tokens == 0:
            return 0.0
        stages = sum(stage.step_seconds(chunks, decodes, decode_context) for stage in self.stages)
        return stages + self._handed_over(tokens, decodes)

    def decode_line(self, decodes: int) -> DecodeLine:
        """As StepTimer says."""
        lines = [stage.decode_line(decodes) for stage in self.stages]
        base = sum(line.base for line in lines) + self._handed_over(decodes, decodes)
        return DecodeLine(base, sum(line.per_context for line in lines))

    def slowest_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        """Seconds until another step like this can follow: of the slowest stage, or link."""
        tokens = decodes + sum(computed for computed, _ in chunks)
        sent = tokens * self.bytes_per_token / self.link.bytes_per_s
        return max(sent, *(stage.step_seconds(chunks, decodes, decode_context) for stage in self.stages))

    def _handed_over(self, tokens: int, sampled: int) -> float:
        num_bytes = (len(self.stages) - 1) * tokens * self.bytes_per_token + sampled * TOKEN_BYTES
        return num_bytes / self.link.bytes_per_s + len(self.stages) * self.link.latency_s
