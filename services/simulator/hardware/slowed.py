"""A device that does everything more slowly."""

from collections.abc import Sequence

from common.errors import ConfigError
from services.simulator.engine.timing import DecodeLine, StepTimer
from services.simulator.hardware.pipelined import PipelinedTimer
from services.simulator.links import LinkSpec


class SlowedTimer(StepTimer):
    """The time model of `timer`'s device when each step takes `slowdown` times as long."""

    def __init__(self, timer: StepTimer, slowdown: float) -> None:
        """`slowdown` is finite and above 0. Raises ConfigError."""
        if not 0 < slowdown < float("inf"):
            raise ConfigError(f"slowdown is {slowdown!r}; give a factor above 0, such as 3.0 for a third of the speed")
        self._timer = timer
        self._slowdown = slowdown

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        """As StepTimer says."""
        return self._slowdown * self._timer.step_seconds(chunks, decodes, decode_context)

    def decode_line(self, decodes: int) -> DecodeLine:
        """As StepTimer says."""
        line = self._timer.decode_line(decodes)
        return DecodeLine(self._slowdown * line.base, self._slowdown * line.per_context)


def slowed(timer: StepTimer, slowdown: float) -> StepTimer:
    """`timer` with steps that take `slowdown` times as long: of a pipeline every stage and every hand-over."""
    if not isinstance(timer, PipelinedTimer):
        return SlowedTimer(timer, slowdown)
    stages = [SlowedTimer(stage, slowdown) for stage in timer.stages]
    link = LinkSpec(timer.link.bytes_per_s / slowdown, slowdown * timer.link.latency_s)
    return PipelinedTimer(stages, timer.layers, link, timer.bytes_per_token)
