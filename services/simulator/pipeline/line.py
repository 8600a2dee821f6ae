"""The devices of a pipeline in a row, each with a share of the layers, and the links between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from services.simulator.engine.events import SimulationError
from services.simulator.engine.timing import StepTimer
from services.simulator.hardware.pipelined import TOKEN_BYTES
from services.simulator.links import LinkSpec


class PipelineSpec(msgspec.Struct, frozen=True):
    """What makes an instance a pipeline, beside the timer of its first stage."""

    later: tuple[StepTimer, ...]
    """The second stage, and any after it; each times its own share of the layers."""
    layers: tuple[int, ...]
    """Of each stage, the first included: for reports."""
    bytes_per_token: int
    """What one token sends from stage to stage: hidden size · bytes of an element."""
    link: LinkSpec
    """Of a link in each direction between neighbours, and from the last stage back to the first."""
    micro_batches: int = 2
    """Steps in the pipeline at once, each of other sequences."""


class StepWork(msgspec.Struct, frozen=True):
    """One step of one micro-batch, in the words of StepTimer.step_seconds."""

    chunks: tuple[tuple[int, int], ...]
    decodes: int
    decode_context: int
    sampled: int
    """Sequences that get a token out of it."""

    @property
    def tokens(self) -> int:
        """Tokens computed."""
        return self.decodes + sum(tokens for tokens, _ in self.chunks)


@dataclass(slots=True)
class _Server:
    """A stage or a link: one at a time, first come, first served."""

    free_at: float = 0.0
    busy_s: float = 0.0

    def serve(self, since: float, seconds: float) -> float:
        """When it is done with what came at `since`, after all that came before."""
        self.free_at = max(since, self.free_at) + seconds
        self.busy_s += seconds
        return self.free_at


class PipelineLine:
    """Stages and links.

    A step enters a stage when that is free and its activations have come; it has ended when its sampled tokens are back
    at the first stage, where the batches are decided (one stage alone has none to send).  Nothing overtakes and there
    is room to wait everywhere, so all times of a step are known when it enters.
    """

    def __init__(self, stages: Sequence[StepTimer], link: LinkSpec, bytes_per_token: int) -> None:
        self._timers = tuple(stages)
        self._stages = [_Server() for _ in stages]
        self._links = [_Server() for _ in stages]
        """Link i leads away from stage i; the last one leads back to the first stage."""
        self._link = link
        self._bytes_per_token = bytes_per_token

    @property
    def free_at(self) -> float:
        """When the first stage takes the next step."""
        return self._stages[0].free_at

    @property
    def busy_s(self) -> tuple[float, ...]:
        """Seconds in which each stage computes, of all steps that have entered."""
        return tuple(stage.busy_s for stage in self._stages)

    def enter(self, step: StepWork, now: float) -> float:
        """When a step has ended that enters the first stage at `now` ≥ `free_at`. Raises SimulationError."""
        if now < self.free_at:
            raise SimulationError(
                f"a step enters at {now!r} s; the first stage computes another until {self.free_at!r}"
            )
        at = now
        for number, timer in enumerate(self._timers):
            seconds = timer.step_seconds(step.chunks, step.decodes, step.decode_context)
            if seconds < 0.0:
                raise SimulationError(f"stage {number} takes {seconds!r} s for {step}: correct its time model")
            at = self._sent(number, step, self._stages[number].serve(at, seconds))
        if at <= now:
            raise SimulationError(f"{step} takes no time in any stage: correct the time models")
        return at

    def _sent(self, number: int, step: StepWork, at: float) -> float:
        """When what a stage has computed by `at` has come where it goes."""
        if len(self._stages) == 1:
            return at
        is_last = number == len(self._stages) - 1
        num_bytes = step.sampled * TOKEN_BYTES if is_last else step.tokens * self._bytes_per_token
        return self._links[number].serve(at, num_bytes / self._link.bytes_per_s) + self._link.latency_s
