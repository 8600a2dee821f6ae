"""The prefix cache over the deterministic runner: the same answers, less computed, blocks given up when needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.engine.api import (
    BlocksReserved,
    DecodeJob,
    EngineEvent,
    Job,
    JobEnded,
    LayerReady,
    PrefillComputed,
    PrefillJob,
    PrefixesChanged,
    PrefixFound,
    TokensSampled,
)
from services.engine.core import EngineCore
from services.engine.runner import Runner
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.continuous import BatchLimits

PROMPT = tuple(range(10, 33))
"""23 tokens: five blocks of four are full before the last token."""


class Counting(DeterministicRunner):
    """Counts the tokens that it computes."""

    computed = 0

    def run(self, items, on_layer):  # type: ignore[no-untyped-def]
        self.computed += sum(len(item.tokens) for item in items)
        return super().run(items, on_layer)


class Bench:
    def __init__(self, num_blocks: int = 64, *, prefix_cache: bool = True, budget: int = 16) -> None:
        self.runner = Counting(deterministic_layout(block_size=4), num_blocks)
        self.events: list[EngineEvent] = []
        limits = BatchLimits(block_size=4, max_sequences=8, budget=budget)
        self.core = EngineCore(self.runner, limits, self.events.append, prefix_cache=prefix_cache)

    def run(self, *jobs: Job) -> "Bench":
        for job in jobs:
            self.core.submit(job)
        while self.core.step():
            self.core.check_integrity()
        return self

    def tokens(self, request: str) -> dict[int, list[int]]:
        out: dict[int, list[int]] = {}
        for event in self.of(TokensSampled):
            for item in event.items:
                if item.request == request:
                    out.setdefault(item.choice, []).extend(item.tokens)
        return out

    def of(self, kind):  # type: ignore[no-untyped-def]
        return [event for event in self.events if isinstance(event, kind)]

    def held_keys(self) -> set[bytes]:
        held: set[bytes] = set()
        for event in self.of(PrefixesChanged):
            held -= set(event.news.removed)
            held |= set(event.news.added)
        return held


def job(request: str, prompt: tuple[int, ...] = PROMPT, max_tokens: int = 9, **changes: int) -> DecodeJob:
    greedy = SamplingParams(temperature=0.0)
    return DecodeJob(RequestId(request), prompt, changes.pop("split", 0), greedy, max_tokens, **changes)


def test_a_prompt_that_comes_again_computes_only_its_rest() -> None:
    bench = Bench().run(job("a"))
    first = bench.runner.computed
    bench.run(job("b"))
    assert bench.tokens("b") == bench.tokens("a")
    assert bench.of(PrefixFound) == [PrefixFound(RequestId("b"), 20)]
    assert bench.runner.computed - first == first - 20
    load = bench.core.load()
    assert (load.blocks_used, load.blocks_kept) == (0, len(bench.held_keys()))


def test_without_the_cache_nothing_is_found_or_kept() -> None:
    bench = Bench(prefix_cache=False).run(job("a")).run(job("b"))
    assert bench.of(PrefixFound) == bench.of(PrefixesChanged) == []
    assert bench.core.load().blocks_kept == 0
    assert bench.tokens("b") == bench.tokens("a")


def test_the_answer_is_part_of_the_next_turn() -> None:
    bench = Bench().run(job("a"))
    turn = (*PROMPT, *bench.tokens("a")[0], 40, 41)
    bench.run(job("b", turn))
    # 23 + 8 tokens were computed, the ninth of the answer never was: seven full blocks of four.
    assert bench.of(PrefixFound) == [PrefixFound(RequestId("b"), 28)]
    assert bench.tokens("b") == Bench(prefix_cache=False).run(job("b", turn)).tokens("b")


def test_the_last_token_is_always_computed() -> None:
    bench = Bench().run(job("a", PROMPT[:16]), job("b", PROMPT[:16])).run(job("c", PROMPT[:16]))
    assert bench.of(PrefixFound) == [PrefixFound(RequestId("c"), 12)]
    assert bench.tokens("c") == bench.tokens("a") == bench.tokens("b")


def test_a_prefill_that_is_all_there_is_offered_at_once() -> None:
    bench = Bench()
    bench.run(PrefillJob(RequestId("a"), PROMPT[:16]))
    bench.core.end(RequestId("a"))
    computed, layers = bench.runner.computed, len(bench.runner.layout.layers)
    bench.events.clear()
    bench.run(PrefillJob(RequestId("b"), PROMPT[:16]))
    assert bench.runner.computed == computed
    assert [type(event) for event in bench.events] == [
        PrefixFound,
        BlocksReserved,
        *[LayerReady] * layers,
        PrefillComputed,
    ]
    assert {event.token_stop for event in bench.of(LayerReady)} == {16}


def test_a_prefill_that_is_partly_there_announces_all_of_it() -> None:
    bench = Bench()
    bench.run(PrefillJob(RequestId("a"), PROMPT[:14]))
    bench.run(PrefillJob(RequestId("b"), PROMPT))
    (found,) = bench.of(PrefixFound)
    assert (found.tokens, bench.runner.computed) == (12, 14 + 23 - 12)
    assert max(event.token_stop for event in bench.of(LayerReady) if event.request == "b") == 23
    a, b = (event.blocks for event in bench.of(BlocksReserved))
    assert a[:3] == b[:3], "both hold them"


def test_kv_that_has_landed_is_found_by_the_next() -> None:
    bench = Bench()
    source = Bench()
    source.run(PrefillJob(RequestId("a"), PROMPT))
    bench.core.submit(job("a", split=22))
    bench.core.step()
    (reserved,) = bench.of(BlocksReserved)
    copy(source.runner, source.of(BlocksReserved)[0].blocks, bench.runner, reserved.blocks)
    bench.core.kv_landed(RequestId("a"))
    bench.run()
    computed = bench.runner.computed
    bench.run(job("b", split=22))
    assert bench.tokens("a") == Bench().run(job("a")).tokens("a")
    waits = bench.of(BlocksReserved)[-1]
    assert (waits.request, waits.held) == ("b", 20), "asks for [20, 22) alone"
    assert bench.runner.computed == computed, "and computes nothing before it has that"
    assert bench.tokens("b") == {}
    bench.core.end(RequestId("b"))
    bench.run(job("c", split=17))
    assert bench.of(PrefixFound)[-1] == PrefixFound(RequestId("c"), 20)
    assert bench.of(BlocksReserved)[-1] is waits, "all that was to come is there"
    assert bench.tokens("c") == bench.tokens("a")
    bench.core.check_integrity()


def copy(source: Runner, blocks: tuple[int, ...], target: Runner, into: tuple[int, ...]) -> None:
    for kind in ("keys", "values"):
        for of, to in zip(getattr(source.kv, kind), getattr(target.kv, kind), strict=True):
            to[list(into)] = of[list(blocks)]


def test_kept_blocks_are_given_up_the_oldest_end_first() -> None:
    bench = Bench(num_blocks=8).run(job("a", tuple(range(100, 116)), 1)).run(job("b", tuple(range(30, 42)), 1))
    assert bench.core.load().blocks_kept == 4 + 3
    bench.run(job("c", tuple(range(60, 68)), 1))
    # Two blocks for c: the empty one, and the end of a.
    bench.run(job("d", tuple(range(100, 117)), 1))
    assert bench.of(PrefixFound) == [PrefixFound(RequestId("d"), 12)]
    assert len(bench.held_keys()) == bench.core.load().blocks_kept


def test_a_preempted_sequence_finds_what_is_left_of_it() -> None:
    tight = Bench(num_blocks=13).run(job("a", max_tokens=20), job("b", tuple(range(60, 80)), 20))
    free = Bench(num_blocks=64, prefix_cache=False).run(job("a", max_tokens=20), job("b", tuple(range(60, 80)), 20))
    assert tight.tokens("a") == free.tokens("a")
    assert tight.tokens("b") == free.tokens("b")
    assert tight.of(PrefixFound) == [], "its own KV is no hit"


def test_requests_with_one_beginning_share_its_room() -> None:
    bench = Bench(num_blocks=16).run(job("a", PROMPT[:21], 1))
    for name in "bcd":
        # Alone each needs seven blocks; five of them are the same.
        bench.core.submit(job(name, (*PROMPT[:20], 50 + ord(name)), 8))
    bench.core.step()
    bench.core.step()
    assert bench.core.load().running == 3
    assert bench.core.load().blocks_used <= 5 + 3 * 2


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 30), st.integers(0, 6), st.integers(1, 12), st.integers(1, 2)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([16, 24, 64]),
    st.sampled_from([3, 16]),
)
def test_the_cache_never_changes_an_answer(
    requests: list[tuple[int, int, int, int, int]], num_blocks: int, budget: int
) -> None:
    """Prompts with few beginnings, in a pool of any size, some at once and some after another."""
    jobs = [
        job(f"r{index}", tuple([base * 50 + at for at in range(length)] + [200 + tail] * 2), outputs, choices=choices)
        for index, (base, length, tail, outputs, choices) in enumerate(requests)
    ]
    cached, plain = Bench(num_blocks, budget=budget), Bench(num_blocks, prefix_cache=False, budget=budget)
    for at in range(0, len(jobs), 3):
        for bench in (cached, plain):
            bench.run(*jobs[at : at + 3])
    for one in jobs:
        assert cached.tokens(one.request) == plain.tokens(one.request)
    assert len(cached.of(JobEnded)) == len(jobs)
    load = cached.core.load()
    assert (load.blocks_used, load.blocks_kept) == (0, len(cached.held_keys()))


@pytest.mark.parametrize("prompt", [PROMPT[:4], PROMPT[:5]])
def test_prompts_of_about_one_block(prompt: tuple[int, ...]) -> None:
    bench = Bench().run(job("a", prompt)).run(job("b", prompt))
    assert bench.tokens("b") == bench.tokens("a")
    assert [event.tokens for event in bench.of(PrefixFound)] == ([4] if len(prompt) == 5 else [])
