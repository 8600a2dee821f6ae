"""The logprobs of prompts: of the model's own head, by any cut, without the prefix cache, told once."""

import pytest
import torch

from common.ids import RequestId
from common.messages.sampling import SamplingParams, TokenLogprobs
from services.engine.api import ChoiceTokens, DecodeJob, EngineEvent, JobEnded, PrefixFound, TokensSampled
from services.engine.core import EngineCore
from services.engine.model import prompt_scores
from services.engine.runner import Runner, ScoreRequest, StepItem
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.continuous import BatchLimits
from tests.unit.engine.tiny_models import VOCAB, Subject, sample_request

PROMPT = tuple(range(10, 33))
SCORED = SamplingParams(temperature=0.0, logprobs=2, prompt_logprobs=2)


@pytest.mark.parametrize(("name", "rows_at_once"), [("llama-gqa", 1), ("qwen3", 1000), ("gemma2", 5), ("gemma3", 5)])
def test_scores_are_those_of_the_whole_forward(name: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2 caps its logits behind the head; a slice of one row is the smallest there is."""
    monkeypatch.setattr(prompt_scores, "_MOST_LOGITS", rows_at_once * VOCAB)
    subject = Subject(name)
    sequences = subject.sequences(3)
    prompt, other = subject.prompt(23), subject.prompt(9, seed=1)
    expected = torch.log_softmax(subject.reference(prompt), dim=-1)
    blocks, others = sequences.blocks(23), sequences.blocks(9)
    found = []
    for start, stop in ((0, 11), (11, 12), (12, 23)):
        scored = ScoreRequest(prompt[start + 1 : stop + 1], 3)
        item = StepItem(prompt[start:stop], start, blocks, sample_request(stop) if stop == 23 else None, scored)
        beside = StepItem(other[start : min(stop, 9)], start, others, sample_request(9)) if start == 0 else None
        results = sequences.runner.run([item] if beside is None else [beside, item])
        assert len(results[0]) == 1 or beside is None, "whoever asks for no score has none"
        found += results[-1][: len(scored.tokens)]
        assert len(results[-1]) == len(scored.tokens) + (stop == 23)
    assert [one.token for one in found] == list(prompt[1:])
    for row, one in enumerate(found):
        assert one.logprobs is not None
        assert one.logprobs.chosen == pytest.approx(float(expected[row, one.token]), abs=1e-4)
        best = expected[row].topk(3)
        assert [value for _, value in one.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [token for token, _ in one.logprobs.top] == best.indices.tolist()


def test_a_forward_that_is_not_scored_keeps_nothing() -> None:
    subject = Subject("llama-gqa")
    sequences = subject.sequences(4)
    assert sequences.runner.scores_prompts
    blocks = sequences.blocks(6)
    prompt = subject.prompt(6)
    sequences.runner.run([StepItem(prompt, 0, blocks, None, ScoreRequest(prompt[1:], 0))])
    body = subject._served.base_model
    assert subject._served.model is body, "the model has its own body again"
    assert not body._forward_hooks


class Bench:
    def __init__(self, runner: Runner | None = None, *, budget: int = 8, num_blocks: int = 64) -> None:
        self.runner = runner or DeterministicRunner(deterministic_layout(block_size=4), num_blocks)
        self.events: list[EngineEvent] = []
        limits = BatchLimits(block_size=4, max_sequences=8, budget=budget)
        self.core = EngineCore(self.runner, limits, self.events.append)

    def run(self, *jobs: DecodeJob) -> "Bench":
        for job in jobs:
            self.core.submit(job)
        while self.core.step():
            self.core.check_integrity()
        return self

    def said(self, request: str) -> list[ChoiceTokens]:
        steps = [event.items for event in self.events if isinstance(event, TokensSampled)]
        return [item for items in steps for item in items if item.request == request]

    def scores(self, request: str) -> tuple[TokenLogprobs, ...]:
        (first, *rest) = self.said(request)
        assert (first.choice, first.first) == (0, 0)
        assert not any(item.prompt_logprobs for item in rest), "told once, with the first token of choice 0"
        return first.prompt_logprobs


def a_job(
    request: str = "a", prompt: tuple[int, ...] = PROMPT, params: SamplingParams = SCORED, **more: int
) -> DecodeJob:
    return DecodeJob(RequestId(request), prompt, more.pop("split", 0), params, more.pop("max_tokens", 3), **more)


@pytest.mark.parametrize("budget", [1, 2, 5, 8, 22, 23, 64])
def test_every_token_but_the_first_is_scored_by_any_cut(budget: int) -> None:
    scores = Bench(budget=budget).run(a_job(), a_job("b", PROMPT[::-1])).scores("a")
    assert len(scores) == len(PROMPT) - 1
    assert scores == Bench(budget=100).run(a_job()).scores("a")


def test_choices_share_the_scores_of_the_first() -> None:
    bench = Bench().run(a_job(choices=3))
    assert len(bench.scores("a")) == len(PROMPT) - 1
    assert {item.choice for item in bench.said("a")} == {0, 1, 2}


def test_a_prompt_of_one_token_has_no_scores() -> None:
    assert Bench().run(a_job(prompt=(7,))).scores("a") == ()


def test_a_prompt_that_is_scored_is_computed_whatever_is_kept_of_it() -> None:
    plain = SamplingParams(temperature=0.0)
    bench = Bench().run(a_job("first", params=plain), a_job("second"))
    assert len(bench.scores("second")) == len(PROMPT) - 1
    assert not [event for event in bench.events if isinstance(event, PrefixFound)]
    bench.run(a_job("third", params=plain))
    assert [e.request for e in bench.events if isinstance(e, PrefixFound)] == ["third"], "what it computed is kept"


class Counting(DeterministicRunner):
    """Counts the tokens that it scores."""

    scored = 0

    def run(self, items, on_layer=None):  # type: ignore[no-untyped-def]
        self.scored += sum(len(item.score.tokens) for item in items if item.score is not None)
        return super().run(items, on_layer)


def test_a_sequence_preempted_in_its_prompt_says_each_score_once() -> None:
    runner = Counting(deterministic_layout(block_size=4), 8)
    bench = Bench(runner, budget=3)
    bench.run(a_job("old", PROMPT[:8], SamplingParams(temperature=0.0), max_tokens=25), a_job("new", PROMPT[:20]))
    assert runner.scored > 19, "it has begun anew"
    assert bench.scores("new") == Bench().run(a_job("new", PROMPT[:20])).scores("new")


def test_scores_need_split_0_and_a_runner_that_makes_them() -> None:
    silent = DeterministicRunner(deterministic_layout(block_size=4), 64)
    silent.scores_prompts = False
    for bench, job, words in ((Bench(), a_job(split=4), "split 4"), (Bench(silent), a_job(), "echo")):
        (event,) = bench.run(job).events
        assert isinstance(event, JobEnded)
        assert event.failure is not None
        assert words in event.failure.message
