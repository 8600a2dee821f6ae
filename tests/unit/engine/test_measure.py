"""Measuring steps on a core without jobs: what is run, what is refused, and that no block stays behind."""

from collections.abc import Callable, Sequence

import pytest

from common.costs.shape import StepShape
from common.costs.step import Step
from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.engine.api import DecodeJob, PrefillJob
from services.engine.core import EngineCore
from services.engine.measuring.measure import MeasurementRefused
from services.engine.runner import Sampled, StepItem
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.continuous import BatchLimits

BLOCK = 4


class Noting(DeterministicRunner):
    """Keeps the items of every step, and whether its layers were announced."""

    def __init__(self, num_blocks: int = 64, **faults: object) -> None:
        super().__init__(deterministic_layout(block_size=BLOCK), num_blocks, context_length=100, **faults)  # type: ignore[arg-type]
        self.batches: list[Sequence[StepItem]] = []
        self.announced: list[bool] = []
        self.copied: list[int] = []

    def run(
        self, items: Sequence[StepItem], on_layer: Callable[[int], None] | None = None
    ) -> list[tuple[Sampled, ...]]:
        self.batches.append(items)
        self.announced.append(on_layer is not None)
        return super().run(items, on_layer)

    def copy_block(self, source: int, target: int) -> None:
        self.copied.append(target)
        super().copy_block(source, target)


class Bench:
    def __init__(self, num_blocks: int = 64, **faults: object) -> None:
        self.runner = Noting(num_blocks, **faults)
        self.core = EngineCore(self.runner, BatchLimits(BLOCK, max_sequences=8, budget=16), lambda event: None)
        self.is_interrupted = lambda: False
        self.clock = 0.0

    def measure(self, *shape: int, is_prefill: bool = False, repeats: int = 2) -> tuple[float, ...]:
        step = Step(StepShape(*shape), is_prefill)
        return self.core.measure(step, repeats, self._timed, lambda: self.is_interrupted())

    def _timed(self, work: Callable[[], object]) -> float:
        work()
        self.clock += 1.0
        return self.clock

    def spans(self) -> list[tuple[int, int, bool]]:
        """(start, tokens, whether it samples) of each item of the last step."""
        return [(item.start, len(item.tokens), item.sample is not None) for item in self.runner.batches[-1]]

    def assert_idle(self) -> None:
        assert self.core.load().blocks_used == 0
        self.core.check_integrity()


def test_a_mixed_step_is_a_chunk_that_samples_nothing_among_decodes_that_share_the_context() -> None:
    bench = Bench()
    bench.measure(9, 11, 3, 16)
    assert bench.spans() == [(11, 9, False), (6, 1, True), (5, 1, True), (5, 1, True)]
    tables = [tuple(item.blocks) for item in bench.runner.batches[-1]]
    assert [len(table) for table in tables] == [5, 2, 2, 2]
    assert len({block for table in tables for block in table}) == 11
    params = [item.sample.params for item in bench.runner.batches[-1] if item.sample is not None]
    assert all(param.temperature == 0.0 for param in params)
    assert bench.runner.announced[-1] is False
    bench.assert_idle()


def test_a_whole_prompt_announces_its_layers_as_a_prefill_instance_does() -> None:
    bench = Bench()
    bench.measure(13, is_prefill=True)
    assert bench.spans() == [(0, 13, False)]
    assert bench.runner.announced[-1] is True
    assert all(0 <= token < bench.runner.vocab_size for token in bench.runner.batches[-1][0].tokens)
    bench.assert_idle()


def test_the_first_run_does_not_count_and_every_block_was_written_before_it() -> None:
    bench = Bench()
    assert bench.measure(0, 0, 2, 20, repeats=3) == (2.0, 3.0, 4.0)
    assert len(bench.runner.batches) == 4
    assert len(bench.runner.copied) == 2 * 3 - 1


@pytest.mark.parametrize(
    ("shape", "is_prefill", "reason"),
    [
        ((0, 0, 0, 0), False, "computes nothing"),
        ((8, -1, 0, 0), False, "below zero"),
        ((1, 8, 0, 0), False, "computed as a decode"),
        ((0, 8, 1, 0), False, "context of nothing"),
        ((8, 0, 0, 8), False, "context of nothing"),
        ((0, 0, 100_000, 0), False, "more than 4096 decodes"),
        ((8, 8, 0, 0), True, "chunk_tokens only"),
        ((0, 0, 2, 8), True, "chunk_tokens only"),
        ((101, 0, 0, 0), True, "the model's context is 100"),
        ((0, 0, 2, 200), False, "the model's context is 100"),
        ((90, 10, 20, 400), False, "64 are free"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(
    shape: tuple[int, ...], is_prefill: bool, reason: str
) -> None:
    bench = Bench()
    with pytest.raises(MeasurementRefused, match=reason):
        bench.measure(*shape, is_prefill=is_prefill)
    assert bench.runner.batches == []
    bench.assert_idle()


@pytest.mark.parametrize("job", [PrefillJob, DecodeJob], ids=["prefill", "decode"])
def test_an_engine_with_a_job_refuses(job: type) -> None:
    bench = Bench()
    asked = RequestId("r")
    given = PrefillJob(asked, (1, 2)) if job is PrefillJob else DecodeJob(asked, (1, 2), 1, SamplingParams(), 4)
    bench.core.submit(given)
    with pytest.raises(MeasurementRefused, match="serves 1 requests"):
        bench.measure(8)
    bench.core.step()
    with pytest.raises(MeasurementRefused, match="serves 1 requests"):
        bench.measure(8)
    bench.core.end(asked)
    assert len(bench.measure(8)) == 2
    bench.assert_idle()


def test_a_step_that_fails_is_a_refusal_and_costs_nothing() -> None:
    bench = Bench(fail_at_step=1)
    with pytest.raises(MeasurementRefused, match="RuntimeError: step 1 fails"):
        bench.measure(8, repeats=5)
    bench.assert_idle()
    assert len(bench.measure(8)) == 2


def test_who_is_interrupted_stops_between_two_runs() -> None:
    bench = Bench()
    bench.is_interrupted = lambda: len(bench.runner.batches) == 2
    with pytest.raises(MeasurementRefused, match="given something to do"):
        bench.measure(8, repeats=5)
    assert len(bench.runner.batches) == 2
    bench.assert_idle()


def test_tokens_of_answers_do_not_change_after_a_measurement() -> None:
    """What a measurement leaves in the blocks is nobody's context."""

    def answer(bench: Bench) -> list[int]:
        tokens: list[int] = []
        bench.core._emit = lambda event: tokens.extend(t for item in getattr(event, "items", ()) for t in item.tokens)
        bench.core.submit(DecodeJob(RequestId("r"), (7, 8, 9, 10, 11), 0, SamplingParams(temperature=0.0), 6))
        while bench.core.has_work():
            bench.core.step()
        return tokens

    fresh, used = Bench(), Bench()
    used.measure(20, 30, 4, 100)
    assert len(answer(fresh)) == 6
    assert answer(used) == answer(fresh)
