"""The engine without a model: a pure function of the context, as the KV blocks hold it."""

from collections.abc import Callable, Sequence

import pytest
import torch

from common.kv.layout import KVOrder
from common.messages.sampling import SamplingParams
from services.engine.runner import Sampled, SampleRequest, StepItem
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout

PROMPT = tuple(range(30, 53))
BLOCKS = (5, 2, 9, 0, 7, 3, 8)
GREEDY = SamplingParams(temperature=0)


def item(
    tokens: Sequence[int],
    start: int = 0,
    *,
    params: SamplingParams | None = GREEDY,
    choices: tuple[int, ...] = (0,),
    forbidden: tuple[int, ...] = (),
) -> StepItem:
    """Tokens [start, len(tokens)) of a sequence, sampled unless `params` is None."""
    sample = None
    if params is not None:
        sample = SampleRequest(
            params=params, choices=choices, position=len(tokens), prompt=tokens, output=(), forbidden=forbidden
        )
    return StepItem(tokens=tokens[start:], start=start, blocks=BLOCKS, sample=sample)


def runner(block_size: int = 4, order: KVOrder = KVOrder.NHD) -> DeterministicRunner:
    return DeterministicRunner(deterministic_layout(block_size=block_size, order=order), num_blocks=10)


def answer(runner: DeterministicRunner, cuts: Sequence[int] = (), num_tokens: int = 5) -> list[int]:
    """Greedy tokens after PROMPT, its computation cut at `cuts`."""
    for start, stop in zip((0, *cuts), cuts, strict=False):
        runner.run([item(PROMPT[:stop], start, params=None)])
    tokens = list(PROMPT)
    computed = cuts[-1] if cuts else 0
    for _ in range(num_tokens):
        [[sampled]] = runner.run([item(tuple(tokens), computed)])
        computed = len(tokens)
        tokens.append(sampled.token)
    return tokens[len(PROMPT) :]


def test_answer_depends_on_no_split_block_size_or_order() -> None:
    expected = answer(runner())
    assert len(set(expected)) > 2
    for size, order in ((4, KVOrder.HND), (7, KVOrder.NHD), (16, KVOrder.HND)):
        for cuts in ((), (1,), (8, 9), (22,)):
            assert answer(runner(size, order), cuts) == expected


def test_answer_depends_on_every_token_of_the_context() -> None:
    def sampled(prompt: tuple[int, ...]) -> Sampled:
        return runner().run([item(prompt)])[0][0]

    wide = [sampled((*PROMPT[:i], PROMPT[i] + 1, *PROMPT[i + 1 :])).token for i in range(len(PROMPT))]
    assert sum(token == sampled(PROMPT).token for token in wide) <= 2


@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("layer", [0, 1])
def test_kv_lost_doubled_or_misplaced_changes_the_answer(part: str, layer: int) -> None:
    def lose(cache: torch.Tensor) -> None:
        cache[BLOCKS[1]] = 0

    def double(cache: torch.Tensor) -> None:
        cache[BLOCKS[2]] = cache[BLOCKS[1]]

    def swap(cache: torch.Tensor) -> None:
        cache[[BLOCKS[1], BLOCKS[2]]] = cache[[BLOCKS[2], BLOCKS[1]]]

    faults: list[Callable[[torch.Tensor], None]] = [lose, double, swap]
    expected = answer(runner(), (22,))
    for fault in faults:
        wronged = runner()
        wronged.run([item(PROMPT[:22], params=None)])
        fault(getattr(wronged.kv, part)[layer])
        tokens = list(PROMPT)
        for _ in range(5):
            start = 22 if len(tokens) == len(PROMPT) else len(tokens) - 1
            [[sampled]] = wronged.run([item(tuple(tokens), start)])
            tokens.append(sampled.token)
        assert tokens[len(PROMPT) :] != expected, fault.__name__


def test_kv_handed_over_gives_the_same_answer() -> None:
    giver, taker = runner(), runner()
    giver.run([item(PROMPT[:13], params=None)])
    for source, target in zip((*giver.kv.keys, *giver.kv.values), (*taker.kv.keys, *taker.kv.values), strict=True):
        target.copy_(source)
    [[sampled]] = taker.run([item(PROMPT, 13)])
    assert sampled.token == answer(runner(), num_tokens=1)[0]


def test_copied_block_stands_for_its_source() -> None:
    forked = runner()
    forked.run([item(PROMPT[:22], params=None)])
    forked.copy_block(BLOCKS[5], 6)
    blocks = (*BLOCKS[:5], 6)
    sample = SampleRequest(params=GREEDY, choices=(0,), position=23, prompt=PROMPT, output=())
    [[sampled]] = forked.run([StepItem(tokens=PROMPT[22:], start=22, blocks=blocks, sample=sample)])
    assert sampled.token == answer(runner(), num_tokens=1)[0]


def test_choices_and_seeds_matter_only_above_temperature_zero() -> None:
    def tokens(params: SamplingParams, choices: tuple[int, ...]) -> list[int]:
        return [sampled.token for sampled in runner().run([item(PROMPT, params=params, choices=choices)])[0]]

    assert len(set(tokens(SamplingParams(temperature=0, seed=1), (0, 1, 2)))) == 1
    warm = tokens(SamplingParams(seed=1), (0, 1, 2))
    assert len(set(warm)) == 3
    assert tokens(SamplingParams(seed=1), (2, 1)) == [warm[2], warm[1]]
    assert tokens(SamplingParams(seed=2), (0, 1, 2)) != warm


def test_forbidden_tokens_are_never_sampled() -> None:
    first = runner().run([item(PROMPT)])[0][0].token
    second = runner().run([item(PROMPT, forbidden=(first,))])[0][0].token
    third = runner().run([item(PROMPT, forbidden=(first, second))])[0][0].token
    assert len({first, second, third}) == 3
    with pytest.raises(ValueError, match="all 256 tokens are forbidden"):
        runner().run([item(PROMPT, forbidden=tuple(range(256)))])


def test_logprobs_when_asked_for() -> None:
    [[sampled]] = runner().run([item(PROMPT, params=SamplingParams(temperature=0, logprobs=3))])
    assert sampled.logprobs is not None
    assert sampled.logprobs.top[0] == (sampled.token, sampled.logprobs.chosen)
    values = [value for _, value in sampled.logprobs.top]
    assert len(values) == 3
    assert sorted(values, reverse=True) == values
    assert runner().run([item(PROMPT)])[0][0].logprobs is None


def test_layers_are_announced_in_order() -> None:
    layers: list[int] = []
    runner().run([item(PROMPT, params=None)], layers.append)
    assert layers == [0, 1]


def test_fails_at_the_step_it_is_told_to_and_only_there() -> None:
    failing = DeterministicRunner(fail_at_step=1)
    expected = failing.run([item(PROMPT)])
    with pytest.raises(RuntimeError, match="step 1 fails"):
        failing.run([item(PROMPT)])
    assert failing.run([item(PROMPT)]) == expected
    assert failing.steps == 3


def test_gate_comes_before_each_step_and_sleep_takes_the_time_told() -> None:
    order: list[object] = []
    slow = DeterministicRunner(step_seconds=0.25, gate=lambda: order.append("gate"), sleep=order.append)
    slow.run([item(PROMPT)])
    slow.run([])
    assert order == ["gate", 0.25, "gate", 0.25]
