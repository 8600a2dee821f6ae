"""The engine core over the deterministic runner: jobs, hand-off phases, forks, preemption, failures, the books."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FailureKind
from common.ids import RequestId
from common.messages.control import FinishReason
from common.messages.sampling import SamplingParams
from services.engine.api import (
    BlocksReserved,
    ComputingBegan,
    DecodeJob,
    EngineEvent,
    JobEnded,
    LayerReady,
    PrefillComputed,
    PrefillFailed,
    PrefillJob,
    PrefixesChanged,
    TokensSampled,
)
from services.engine.core import EngineCore
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.continuous import BatchLimits

PROMPT = tuple(range(10, 33))
GREEDY = SamplingParams(temperature=0.0)


class Bench:
    """A core with its events in a list."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_sequences: int = 8,
        budget: int | None = 16,
        chunk: int | None = None,
        prompts_per_step: int | None = None,
        fail_at_step: int | None = None,
        block_size: int = 4,
    ) -> None:
        layout = deterministic_layout(block_size=block_size)
        self.runner = DeterministicRunner(layout, num_blocks, fail_at_step=fail_at_step)
        limits = BatchLimits(block_size, max_sequences, budget, chunk, prompts_per_step)
        self.events: list[EngineEvent] = []
        self.core = EngineCore(self.runner, limits, self.events.append)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(10_000):
            if until() or not self.core.step():
                return
            self.core.check_integrity()
        raise AssertionError("the engine does not come to an end")

    def tokens(self, request: str, choice: int = 0) -> list[int]:
        out: list[int] = []
        for event in self.events:
            if isinstance(event, TokensSampled):
                for item in event.items:
                    if (item.request, item.choice) == (request, choice):
                        assert item.first == len(out), "tokens are numbered without gaps"
                        out += item.tokens
        return out

    def ends(self, request: str) -> list[JobEnded]:
        return [e for e in self.events if isinstance(e, JobEnded) and e.request == request]

    def of(self, kind: type[EngineEvent]) -> list[EngineEvent]:
        return [e for e in self.events if isinstance(e, kind)]

    def assert_empty(self) -> None:
        load = self.core.load()
        assert (load.waiting, load.running, load.blocks_used, load.queued_tokens, load.context_tokens) == (0,) * 5
        self.core.check_integrity()


def job(request: str = "r", **changes: object) -> DecodeJob:
    fields: dict[str, object] = {"prompt": PROMPT, "split": 0, "sampling": GREEDY, "max_tokens": 9} | changes
    return DecodeJob(request=RequestId(request), **fields)  # type: ignore[arg-type]


def answer(**changes: object) -> list[int]:
    """What an engine with all the room in the world says."""
    bench = Bench(budget=1000)
    bench.core.submit(job(**changes))
    bench.run()
    return bench.tokens("r")


def test_a_request_is_answered_and_forgotten() -> None:
    bench = Bench()
    bench.core.submit(job())
    bench.run()
    assert len(bench.tokens("r")) == 9
    last = bench.of(TokensSampled)[-1]
    assert isinstance(last, TokensSampled)
    assert last.items[0].finish is FinishReason.LENGTH
    assert bench.ends("r") == [JobEnded(RequestId("r"), None)]
    assert bench.events[-1] == bench.ends("r")[0]
    bench.assert_empty()


@pytest.mark.parametrize("budget", [1, 3, 16, 1000])
def test_the_answer_does_not_depend_on_the_budget(budget: int) -> None:
    bench = Bench(budget=budget, max_sequences=1)
    bench.core.submit(job())
    bench.run()
    assert bench.tokens("r") == answer()


def test_the_answer_does_not_depend_on_the_crowd() -> None:
    bench = Bench()
    for index in range(12):
        bench.core.submit(job(f"r{index}", prompt=PROMPT[: 5 + index]))
    bench.run()
    for index in range(12):
        assert bench.tokens(f"r{index}") == answer(prompt=PROMPT[: 5 + index])
    bench.assert_empty()


def test_a_stop_token_ends_the_choice_and_is_emitted() -> None:
    expected = answer()
    bench = Bench()
    bench.core.submit(job(stop_tokens=(expected[3],)))
    bench.run()
    first = expected.index(expected[3])
    assert bench.tokens("r") == expected[: first + 1]


def test_min_tokens_forbids_stop_tokens() -> None:
    expected = answer()
    bench = Bench()
    bench.core.submit(job(stop_tokens=(expected[0],), min_tokens=4))
    bench.run()
    assert expected[0] not in bench.tokens("r")[:4]


def test_max_tokens_one_gives_one_token() -> None:
    assert len(answer(max_tokens=1)) == 1


def test_choices_share_one_prefill_and_differ() -> None:
    bench = Bench(budget=1000)
    sampling = SamplingParams(temperature=1.0, seed=7)
    bench.core.submit(job(choices=3, sampling=sampling))
    bench.core.step()
    # 23 prompt tokens: 5 full blocks are shared, the sixth is held three times.
    assert bench.core.load().blocks_used == 5 + 3
    bench.run()
    answers = [bench.tokens("r", choice) for choice in range(3)]
    assert [len(tokens) for tokens in answers] == [9, 9, 9]
    assert len({tuple(tokens) for tokens in answers}) == 3
    assert len(bench.ends("r")) == 1
    bench.assert_empty()


def test_choices_without_slots_are_computed_again_and_say_the_same() -> None:
    sampling = SamplingParams(temperature=1.0, seed=7)
    roomy, tight = Bench(), Bench(max_sequences=1, budget=4)
    for bench in (roomy, tight):
        bench.core.submit(job(choices=3, sampling=sampling))
        bench.run()
    assert [roomy.tokens("r", c) for c in range(3)] == [tight.tokens("r", c) for c in range(3)]
    assert tight.of(ComputingBegan) == [ComputingBegan(RequestId("r"))]
    tight.assert_empty()


def test_a_choice_without_a_slot_waits_before_requests_that_came_later() -> None:
    bench = Bench(max_sequences=1)
    bench.core.submit(job("first", choices=3))
    bench.core.submit(job("later"))
    bench.core.submit(job("last", choices=2))
    bench.run()
    ends = [event.request for event in bench.of(JobEnded) if isinstance(event, JobEnded)]
    assert ends == ["first", "later", "last"]
    bench.assert_empty()


def test_tokens_are_counted_whatever_steps_compute_them() -> None:
    for bench in (Bench(), Bench(budget=4)):
        bench.core.submit(job(max_tokens=9))
        bench.run()
        # The last token of the answer is sampled and never computed.
        assert bench.core.load().tokens == len(PROMPT) + 9 - 1


def test_preemption_computes_again_and_says_the_same() -> None:
    # Four requests that need 8 blocks each at the end share 13.
    bench = Bench(num_blocks=13)
    for index in range(4):
        bench.core.submit(job(f"r{index}", prompt=(index, *PROMPT[:3]), max_tokens=28))
    bench.run()
    for index in range(4):
        assert bench.tokens(f"r{index}") == answer(prompt=(index, *PROMPT[:3]), max_tokens=28)
    assert bench.core.load().steps > 31, "nothing was preempted: the test shows nothing"
    assert bench.of(ComputingBegan) == [ComputingBegan(RequestId(f"r{index}")) for index in range(4)]
    bench.assert_empty()


def test_a_prefill_job_reports_layers_and_holds_its_blocks_until_the_end() -> None:
    bench = Bench(budget=None, prompts_per_step=1)
    bench.core.submit(PrefillJob(RequestId("p"), PROMPT))
    bench.run()
    kinds = [type(event) for event in bench.events if not isinstance(event, PrefixesChanged)]
    assert kinds == [BlocksReserved, ComputingBegan, LayerReady, LayerReady, PrefillComputed]
    assert [e.layer for e in bench.of(LayerReady) if isinstance(e, LayerReady)] == [0, 1]
    assert bench.core.load().blocks_used == 6
    bench.core.end(RequestId("p"))
    assert bench.ends("p") == [JobEnded(RequestId("p"), None)]
    bench.assert_empty()


def test_a_chunked_prefill_job_reports_every_chunk() -> None:
    bench = Bench(budget=None, prompts_per_step=1, chunk=10)
    bench.core.submit(PrefillJob(RequestId("p"), PROMPT))
    bench.run()
    stops = [(e.layer, e.token_stop) for e in bench.of(LayerReady) if isinstance(e, LayerReady)]
    assert stops == [(0, 10), (1, 10), (0, 20), (1, 20), (0, 23), (1, 23)]


@pytest.mark.parametrize("split", [1, 4, 7, 16, 22])
def test_kv_from_elsewhere_gives_the_same_answer(split: int) -> None:
    prefill, decode = Bench(budget=None, prompts_per_step=1), Bench()
    prefill.core.submit(PrefillJob(RequestId("r"), PROMPT[:split]))
    prefill.run()
    decode.core.submit(job(split=split))
    decode.run()
    assert not decode.of(TokensSampled), "computed before the KV was there"
    (source,), (target,) = prefill.of(BlocksReserved), decode.of(BlocksReserved)
    assert isinstance(source, BlocksReserved)
    assert isinstance(target, BlocksReserved)
    assert len(target.blocks) == 6, "room for the whole prompt is reserved"
    for here, there in zip(source.blocks, target.blocks, strict=False):
        for mine, theirs in zip(
            (*prefill.runner.kv.keys, *prefill.runner.kv.values),
            (*decode.runner.kv.keys, *decode.runner.kv.values),
            strict=True,
        ):
            theirs[there].copy_(mine[here])
    decode.core.kv_landed(RequestId("r"))
    decode.run()
    assert decode.tokens("r") == answer()
    decode.assert_empty()


def test_a_failed_forward_ends_decode_jobs_and_holds_prefill_jobs() -> None:
    bench = Bench(fail_at_step=1)
    bench.core.submit(job("d"))
    bench.run(until=lambda: bool(bench.ends("d")))
    (ended,) = bench.ends("d")
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.ENGINE_FAILED
    bench.core.submit(job("next"))
    bench.run()
    assert bench.tokens("next") == answer(), "the engine goes on after a failure"
    bench.assert_empty()

    bench = Bench(fail_at_step=0)
    bench.core.submit(PrefillJob(RequestId("p"), PROMPT))
    bench.run(until=lambda: bool(bench.of(PrefillFailed)))
    assert bench.core.load().blocks_used == 6
    assert not bench.core.has_work()
    bench.core.end(RequestId("p"))
    bench.assert_empty()


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_ending_a_job_at_any_time_frees_everything(steps: int) -> None:
    bench = Bench()
    bench.core.submit(job("a", choices=2, sampling=SamplingParams(seed=1)))
    bench.core.submit(job("b"))
    for _ in range(steps):
        bench.core.step()
    bench.core.end(RequestId("a"))
    bench.core.end(RequestId("a"))
    assert len(bench.ends("a")) == 1
    bench.run()
    assert bench.tokens("b") == answer()
    bench.assert_empty()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ()}, "empty"),
        ({"split": 23}, "split 23"),
        ({"max_tokens": 5000}, "context is 4096"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"choices": 0}, "choices 0"),
        ({"prompt": (1, 256)}, "token id 256"),
        ({"prompt": (-1, 2)}, "token id -1"),
        ({"prompt": tuple(range(200)) * 2, "max_tokens": 1}, "holds 256"),
    ],
)
def test_what_can_never_be_served_is_refused_with_numbers(changes: dict[str, object], words: str) -> None:
    bench = Bench()
    bench.core.submit(job(**changes))
    (ended,) = bench.ends("r")
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.INVALID_REQUEST
    assert words in ended.failure.message
    bench.assert_empty()


def test_the_same_request_twice_changes_nothing_about_the_first() -> None:
    bench = Bench()
    bench.core.submit(job())
    bench.core.submit(job(max_tokens=2))
    bench.run()
    assert bench.ends("r") == [JobEnded(RequestId("r"), None)], "the last event about a request comes once"
    assert bench.tokens("r") == answer()
    bench.assert_empty()


def test_a_step_that_only_preempts_is_followed_by_another() -> None:
    # Blocks of one token. When "c" needs its second block, the forked choices of "a" hold all the others, shared:
    # preempting one of the two frees nothing by itself, so all three go in one step, which then computes nothing.
    bench = Bench(num_blocks=6, budget=3, block_size=1)
    bench.core.submit(job("c", prompt=(1,), max_tokens=6))
    bench.core.submit(job("a", prompt=(2, 3, 4, 5), max_tokens=2, choices=2))
    bench.run()
    assert bench.tokens("c") == answer(prompt=(1,), max_tokens=6)
    assert len(bench.ends("a")) == 1
    bench.assert_empty()


class Pair:
    """A core whose jobs get the KV of [0, split) from another core, late and in any order."""

    def __init__(self, bench: Bench, draw: Callable[[int], int]) -> None:
        self.bench = bench
        self._draw = draw
        self._landing: list[BlocksReserved] = []
        self._jobs: dict[RequestId, DecodeJob] = {}
        self._seen = 0

    def submit(self, work: DecodeJob) -> None:
        self._jobs[work.request] = work
        self.bench.core.submit(work)

    def is_open(self, request: str) -> bool:
        return not self.bench.ends(request)

    def land_one(self) -> bool:
        """Whether a hand-off was under way; one of them is then complete."""
        new = self.bench.events[self._seen :]
        self._seen = len(self.bench.events)
        self._landing += [event for event in new if isinstance(event, BlocksReserved)]
        self._landing = [event for event in self._landing if self.is_open(event.request)]
        if not self._landing:
            return False
        landed = self._landing.pop(self._draw(len(self._landing)))
        self._fill(landed)
        self.bench.core.kv_landed(landed.request)
        return True

    def _fill(self, target: BlocksReserved) -> None:
        work = self._jobs[target.request]
        source = Bench(budget=None, block_size=self.bench.runner.layout.block_size)
        source.core.submit(PrefillJob(work.request, work.prompt[: work.split]))
        source.run()
        (offered,) = [event for event in source.events if isinstance(event, BlocksReserved)]
        ours, theirs = self.bench.runner.kv, source.runner.kv
        for mine, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
            for here, there in zip(target.blocks, offered.blocks, strict=False):
                mine[here].copy_(other[there])


def alone(work: DecodeJob, choice: int) -> list[int]:
    bench = Bench(budget=None)
    bench.core.submit(msgspec.structs.replace(work, split=0))
    bench.run()
    return bench.tokens(work.request, choice)


@given(data=st.data())
def test_any_crowd_ends_and_says_what_each_says_alone(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    block_size = data.draw(st.sampled_from([1, 2, 4]))
    works = [
        job(
            f"r{index}",
            prompt=PROMPT[: (length := draw(1, 9))],
            split=draw(0, length - 1),
            max_tokens=draw(1, 6),
            choices=draw(1, 3),
            sampling=SamplingParams(temperature=1.0, seed=index),
        )
        for index in range(draw(1, 5))
    ]
    largest = max(-(-(len(work.prompt) + work.max_tokens - 1) // block_size) for work in works)
    bench = Bench(num_blocks=largest + draw(0, 3), max_sequences=draw(1, 4), budget=draw(1, 12), block_size=block_size)
    pair = Pair(bench, lambda count: draw(0, count - 1))
    aborted: set[RequestId] = set()
    for work in works:
        pair.submit(work)
    # As the engine's thread does it: after a step that changed nothing, only a command can.
    for _ in range(2_000):
        if not bench.core.step() and not pair.land_one():
            break
        if draw(0, 3) == 0:
            pair.land_one()
        if draw(0, 15) == 0:
            aborted.add(works[0].request)
            bench.core.end(works[0].request)
        bench.core.check_integrity()
    for work in works:
        assert len(bench.ends(work.request)) == 1, "every job ends, and once"
        for choice in range(work.choices):
            said = bench.tokens(work.request, choice)
            assert said == alone(work, choice)[: len(said)]
            assert len(said) == work.max_tokens or work.request in aborted
    bench.assert_empty()
