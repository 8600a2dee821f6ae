"""Grammars in the engine: masks before all else, a guide for each choice, failures that stay with their request."""

import pytest
import torch

from common.errors import FailureKind, GrammarRefused
from common.ids import RequestId
from common.messages.control import FinishReason
from common.messages.sampling import SamplingParams
from services.engine.api import DecodeJob, EngineEvent, JobEnded, TokensSampled
from services.engine.core import EngineCore
from services.engine.guide import Grammar, Guide, allowed_next
from services.engine.runner import SampleRequest
from services.engine.sampling.sampling import Sampler
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.scheduling.continuous import BatchLimits

VOCAB = 256
END = 255
PROMPT = tuple(range(10, 33))


class Phrases(Grammar):
    """Answers are these sequences of tokens."""

    def __init__(self, *phrases: bytes, breaks_after: int | None = None) -> None:
        self.phrases = phrases
        self.breaks_after = breaks_after

    def guide(self) -> Guide:
        return PhraseGuide(self, b"")


class PhraseGuide(Guide):
    def __init__(self, grammar: Phrases, said: bytes) -> None:
        self._grammar = grammar
        self._said = said

    @property
    def is_over(self) -> bool:
        return self.may_end() and not any(self._next())

    def _next(self) -> list[int]:
        length = len(self._said)
        return [p[length] for p in self._grammar.phrases if p.startswith(self._said) and len(p) > length]

    def allowed(self) -> bytes:
        if len(self._said) == self._grammar.breaks_after:
            raise GrammarRefused("too many states")
        return bytes(token in self._next() for token in range(VOCAB))

    def may_end(self) -> bool:
        return self._said in self._grammar.phrases

    def advance(self, token: int) -> None:
        self._said += bytes([token])

    def fork(self) -> Guide:
        return PhraseGuide(self._grammar, self._said)


class Bench:
    def __init__(self, *, num_blocks: int = 64, max_sequences: int = 8) -> None:
        self.events: list[EngineEvent] = []
        self.runner = DeterministicRunner(deterministic_layout(block_size=4), num_blocks, vocab_size=VOCAB)
        self.core = EngineCore(self.runner, BatchLimits(4, max_sequences, 16), self.events.append)

    def submit(self, name: str, grammar: Grammar | None, **changes: object) -> None:
        fields: dict[str, object] = {"sampling": SamplingParams(seed=5), "max_tokens": 9, "stop_tokens": (END,)}
        self.core.submit(DecodeJob(RequestId(name), PROMPT, 0, grammar=grammar, **(fields | changes)))  # type: ignore[arg-type]

    def run(self) -> None:
        while self.core.step():
            self.core.check_integrity()

    def said(self, name: str, choice: int = 0) -> bytes:
        found = [
            item.tokens
            for event in self.events
            if isinstance(event, TokensSampled)
            for item in event.items
            if (item.request, item.choice) == (name, choice)
        ]
        return bytes(token for tokens in found for token in tokens)

    def finish(self, name: str) -> FinishReason | None:
        (last,) = [
            item.finish
            for event in self.events
            if isinstance(event, TokensSampled)
            for item in event.items
            if item.request == name and item.finish is not None
        ]
        return last

    def failure(self, name: str) -> FailureKind | None:
        (end,) = [event for event in self.events if isinstance(event, JobEnded) and event.request == name]
        return None if end.failure is None else end.failure.kind


def test_an_answer_ends_with_its_grammar_though_no_stop_token_came() -> None:
    bench = Bench()
    bench.submit("r", Phrases(b"abc"))
    bench.run()
    assert (bench.said("r"), bench.finish("r")) == (b"abc", FinishReason.STOP)


def test_a_stop_token_comes_only_where_the_grammar_may_end() -> None:
    found = set()
    for seed in range(40):
        bench = Bench()
        bench.submit("r", Phrases(b"ab", b"abcd"), sampling=SamplingParams(seed=seed))
        bench.run()
        assert bench.finish("r") is FinishReason.STOP
        found.add(bench.said("r"))
    assert found == {bytes([*b"ab", END]), b"abcd"}


def test_what_max_tokens_cuts_off_has_finished_by_length() -> None:
    bench = Bench()
    bench.submit("cut", Phrases(b"abcdefgh"), max_tokens=3)
    bench.submit("whole", Phrases(b"abc"), max_tokens=3)
    bench.run()
    assert (bench.said("cut"), bench.finish("cut")) == (b"abc", FinishReason.LENGTH)
    assert (bench.said("whole"), bench.finish("whole")) == (b"abc", FinishReason.STOP)


def test_min_tokens_holds_where_the_grammar_can_go_on_and_yields_where_it_cannot() -> None:
    for seed in range(20):
        bench = Bench()
        bench.submit("on", Phrases(b"a", b"abcdef"), min_tokens=5, sampling=SamplingParams(seed=seed))
        bench.submit("over", Phrases(b"ab"), min_tokens=9)
        bench.run()
        assert bench.said("on") == b"abcdef"
        assert bench.said("over") == b"ab"


def test_every_choice_has_a_place_of_its_own_in_tight_memory_too() -> None:
    phrases = [bytes([first, *range(1, 40)]) for first in range(40, 250, 10)]
    answers = []
    for num_blocks in (64, 20):
        bench = Bench(num_blocks=num_blocks)
        bench.submit("r", Phrases(*phrases), choices=4, max_tokens=40)
        bench.run()
        answers.append([bench.said("r", choice) for choice in range(4)])
        assert set(answers[-1]) <= set(phrases)
    assert len(set(answers[0])) > 1
    # In 20 blocks the choices were preempted, and computed anew.
    assert answers[0] == answers[1]


def test_a_grammar_that_breaks_ends_its_own_request_alone() -> None:
    lone = Bench()
    lone.submit("free", None)
    lone.run()
    bench = Bench()
    bench.submit("broken", Phrases(b"abcdef", breaks_after=3), choices=2)
    bench.submit("free", None)
    bench.run()
    assert bench.failure("broken") is FailureKind.INVALID_REQUEST
    assert bench.said("broken") == b"abc"
    assert bench.failure("free") is None
    assert bench.said("free") == lone.said("free")
    assert bench.core.load().blocks_used == 0


def test_nothing_allowed_is_a_refusal_and_not_a_token() -> None:
    with pytest.raises(GrammarRefused, match="no token"):
        allowed_next(Phrases().guide(), (END,), is_too_early=False)


# ---------------------------------------------------------------- the sampler


def ask(allowed: bytes | None, **params: object) -> SampleRequest:
    return SampleRequest(SamplingParams(**params), (0,), 7, (), (), allowed=allowed)  # type: ignore[arg-type]


def only(*tokens: int) -> bytes:
    return bytes(token in tokens for token in range(VOCAB))


def token(logits: torch.Tensor, request: SampleRequest) -> int:
    ((sampled,),) = Sampler().sample(logits[None], [request])
    return sampled.token


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 2.0, "seed": 3},
        {"top_k": 3},
        {"top_p": 0.1},
        {"min_p": 0.9},
        {"repetition_penalty": 3.0, "frequency_penalty": 2.0},
        {"logit_bias": {0: 100.0, 9: -100.0}},
    ],
)
def test_no_parameter_brings_back_what_is_not_allowed(params: dict[str, object]) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    logits[0] = 50.0
    assert token(logits, ask(only(9), **params)) == 9
    assert token(logits, ask(only(9, 200), **params)) in (9, 200)


def test_a_mask_that_allows_all_changes_nothing() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2))
    for seed in range(50):
        for more in ({}, {"top_p": 0.8}, {"top_k": 20}, {"min_p": 0.05}):
            free, masked = ask(None, seed=seed, **more), ask(bytes([1]) * VOCAB, seed=seed, **more)
            assert token(logits, free) == token(logits, masked)


def test_a_draw_among_the_allowed_is_the_one_with_the_most_noise_of_its_own() -> None:
    """The noise of a token does not depend on which others are allowed."""
    logits = torch.zeros(VOCAB)
    for seed in range(50):
        winner = token(logits, ask(None, seed=seed))
        assert token(logits, ask(only(winner, 3, 77), seed=seed)) == winner


def test_logprobs_are_those_of_the_model_and_the_mask_may_be_short_or_long() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3))
    ((sampled,),) = Sampler().sample(logits[None], [ask(only(5)[:6], logprobs=1)])
    assert sampled.token == 5
    assert sampled.logprobs is not None
    expected = torch.log_softmax(logits, dim=-1)
    assert sampled.logprobs.chosen == pytest.approx(float(expected[5]), abs=1e-6)
    assert sampled.logprobs.top[0][0] == int(expected.argmax())
    assert token(logits, ask(only(5) + bytes(8))) == 5
