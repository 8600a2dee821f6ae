"""A simulated engine driven by a list of commands, with time models whose sums are worked out by hand."""

from collections.abc import Callable, Sequence

from services.scheduling.continuous import BatchLimits
from services.simulator.engine.engine import SimulatedEngine
from services.simulator.engine.events import EngineEvent
from services.simulator.engine.timing import DecodeLine, StepTimer

Command = Callable[[SimulatedEngine, float], None]


class HandTimer(StepTimer):
    """With a chunk: 1 s and 1/4 s per token computed. Decodes alone: 1 s and 1/8 s per token of context."""

    def step_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, decode_context: int) -> float:
        if not chunks:
            return 1.0 + 0.125 * decode_context
        return 1.0 + 0.25 * (sum(count for count, _ in chunks) + decodes)

    def decode_line(self, decodes: int) -> DecodeLine:
        return DecodeLine(1.0, 0.125)


class Gaps:
    """Every gap by itself, in the order of the steps."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def record_gap(self, seconds: float, count: int) -> None:
        self.all += [seconds] * count

    def record_run(self, first: float, increment: float, steps: int, count: int) -> None:
        for index in range(steps):
            self.record_gap(first + index * increment, count)


class Driver:
    """An engine with 4-token blocks, checked, and what it said."""

    def __init__(
        self,
        *,
        num_blocks: int = 100,
        max_sequences: int = 4,
        budget: int | None = 8,
        chunk: int | None = None,
        prompts_per_step: int | None = None,
        jumps: bool = True,
    ) -> None:
        limits = BatchLimits(4, max_sequences, budget, chunk, prompts_per_step)
        self.gaps = Gaps()
        self.engine = SimulatedEngine(limits, num_blocks, HandTimer(), gaps=self.gaps, jumps=jumps, checked=True)
        self.events: list[EngineEvent] = []
        self.ends: list[float] = []
        """When it was advanced."""

    def run(self, *commands: tuple[float, Command]) -> list[EngineEvent]:
        """Give each command at its time, and go on until nothing happens any more."""
        for now, command in commands:
            self.until(now)
            command(self.engine, now)
        self.until(float("inf"))
        return self.events

    def until(self, now: float) -> None:
        """Up to `now`, but for what is due at that very instant."""
        while (due := self.engine.next_event_at()) is not None and due < now:
            self.ends.append(due)
            self.events += self.engine.advance(due)


def decode(key: int, prompt: int, output: int, split: int = 0) -> Command:
    return lambda engine, now: engine.submit_decode(key, prompt, split, output, now)


def prefill(key: int, tokens: int) -> Command:
    return lambda engine, now: engine.submit_prefill(key, tokens, now)


def landed(key: int) -> Command:
    return lambda engine, now: engine.kv_landed(key, now)


def end(key: int) -> Command:
    return lambda engine, now: engine.end(key, now)
