"""The runner's logits are those of transformers' own forward, however a sequence is cut, stored and batched."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch

from common.kv.layout import KVOrder
from services.engine.native.kernels import Kernels
from services.engine.runner import StepItem
from tests.unit.engine.tiny_models import MODELS, WIDE_MODELS, WINDOW, Sequences, Subject, sample_request

NHD, HND = KVOrder.NHD, KVOrder.HND
LAYOUTS = [(1, NHD), (3, HND), (16, NHD)]
LENGTH = 29

assert LENGTH > 2 * WINDOW


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


BY_KERNELS = ("qwen3", "gemma2", "gemma3", "glm4-moe", *WIDE_MODELS)
"""Computed a second time with the C++ kernels, as far as they serve them."""


@pytest.fixture(scope="session")
def subject_named(kernels: Kernels) -> Callable[[str], Subject]:
    made: dict[str, Subject] = {}

    def subject(name: str) -> Subject:
        if name not in made:
            kind, _, model = name.rpartition(":")
            made[name] = Subject(model, kernels if kind == "kernels" else None)
        return made[name]

    return subject


@pytest.fixture(params=[*MODELS, *(f"kernels:{name}" for name in BY_KERNELS)])
def subject(request: pytest.FixtureRequest, subject_named: Callable[[str], Subject]) -> Subject:
    return subject_named(request.param)


@pytest.fixture(params=LAYOUTS, ids=lambda layout: f"{layout[0]}-{layout[1]}")
def sequences(request: pytest.FixtureRequest, subject: Subject) -> Sequences:
    return subject.sequences(*request.param)


def test_whole_prompt_in_one_step(subject: Subject, sequences: Sequences) -> None:
    prompt = subject.prompt(LENGTH)
    logits = sequences.step((prompt, 0, LENGTH, sequences.blocks(LENGTH)))
    assert_close(logits, subject.reference(prompt)[-1:])


def test_chunks_then_decodes(subject: Subject, sequences: Sequences) -> None:
    prompt = subject.prompt(LENGTH)
    blocks = sequences.blocks(LENGTH)
    expected = subject.reference(prompt)
    cuts = [0, 2, 11, 18, 19, 24, *range(25, LENGTH + 1)]
    for start, stop in itertools.pairwise(cuts):
        logits = sequences.step((prompt, start, stop, blocks))
        assert_close(logits, expected[stop - 1 : stop])


def test_decodes_and_chunks_in_one_step(subject: Subject, sequences: Sequences) -> None:
    """Decodes of very different lengths, later chunks and a first chunk, in an order that no plan would choose."""
    ends = [(20, 27), (4, 5), (0, 13), (40, 41), (1, 2), (12, 13), (9, 14)]
    prompts = [subject.prompt(stop, seed) for seed, (_, stop) in enumerate(ends)]
    parts = [(prompt, start, stop, sequences.blocks(stop)) for prompt, (start, stop) in zip(prompts, ends, strict=True)]
    sequences.step(*[(prompt, 0, start, blocks) for prompt, start, _, blocks in parts if start > 0])
    logits = sequences.step(*parts)
    assert_close(logits, torch.stack([subject.reference(prompt)[-1] for prompt in prompts]))


@pytest.mark.parametrize("split", [1, 16, 21, LENGTH - 1])
def test_prompt_handed_over_by_another_runner(subject: Subject, split: int) -> None:
    prompt = subject.prompt(LENGTH)
    giver, taker = subject.sequences(4, HND, seed=1), subject.sequences(4, HND, seed=2)
    given, taken = giver.blocks(split), taker.blocks(LENGTH)
    giver.step((prompt, 0, split, given))
    hand_over(giver, given, taker, taken, split)
    logits = taker.step((prompt, split, LENGTH, taken))
    assert_close(logits, subject.reference(prompt)[-1:])


def hand_over(
    giver: Sequences, given: tuple[int, ...], taker: Sequences, taken: tuple[int, ...], num_tokens: int
) -> None:
    """Move the KV of whole tokens only: what lies behind the last one stays as the taker had it."""
    size = giver.runner.layout.block_size
    for ours, theirs in (
        (giver.runner.kv.keys, taker.runner.kv.keys),
        (giver.runner.kv.values, taker.runner.kv.values),
    ):
        for source, target in zip(ours, theirs, strict=True):
            for index, block in enumerate(given):
                tokens = min(size, num_tokens - index * size)
                target[taken[index], :, :tokens] = source[block, :, :tokens]


def test_a_block_lost_in_the_hand_off_changes_the_answer(subject_named: Callable[[str], Subject]) -> None:
    subject = subject_named("llama-gqa")
    prompt = subject.prompt(LENGTH)
    sequences = subject.sequences(4, HND)
    blocks = sequences.blocks(LENGTH)
    sequences.step((prompt, 0, LENGTH - 1, blocks))
    for cache in sequences.runner.kv.values:
        cache[blocks[2]] = 0
    logits = sequences.step((prompt, LENGTH - 1, LENGTH, blocks))
    assert (logits - subject.reference(prompt)[-1:]).abs().max() > 1e-2


def test_sliding_window_and_softcap_matter_in_these_models(
    subject_named: Callable[[str], Subject],
) -> None:
    """Else the tests above would pass without them."""
    for name, change in (
        ("mistral", {"sliding_window": 10_000}),
        ("gemma2", {"sliding_window": 10_000}),
        ("gemma3", {"sliding_window": 10_000}),
        ("qwen3", {"sliding_window": 10_000}),
        ("gemma2", {"attn_logit_softcapping": 1e6}),
    ):
        subject = subject_named(name)
        prompt = subject.prompt(LENGTH)
        changed = copy.deepcopy(subject._reference)
        for module in changed.modules():
            if hasattr(module, "attn_logit_softcapping") and "attn_logit_softcapping" in change:
                module.attn_logit_softcapping = change["attn_logit_softcapping"]
        for key, value in change.items():
            setattr(changed.config, key, value)
        with torch.inference_mode():
            other = changed(torch.tensor([prompt])).logits[0]
        assert (other - subject.reference(prompt))[-1].abs().max() > 1e-2, (name, change)


@pytest.mark.parametrize("name", ["llama-wide", "mistral-wide"])
def test_kernels_reach_over_many_tiles(subject_named: Callable[[str], Subject], name: str) -> None:
    """Contexts longer than the scores that the kernel holds at a time."""
    subject = subject_named(f"kernels:{name}")
    sequences = subject.sequences(16, HND, num_tokens=1024)
    prompts = [subject.prompt(length, length) for length in (126, 64, 65, 128)]
    parts = [(prompt, len(prompt) - 1, len(prompt), sequences.blocks(len(prompt))) for prompt in prompts]
    sequences.step(*[(prompt, 0, start, blocks) for prompt, start, _, blocks in parts])
    assert_close(sequences.step(*parts), torch.stack([subject.reference(prompt)[-1] for prompt in prompts]))


def test_long_softcapped_chunks_are_attended_in_slices(subject_named: Callable[[str], Subject]) -> None:
    subject = subject_named("gemma2")
    length = 600
    prompt = subject.prompt(length)
    sequences = subject.sequences(16, num_tokens=length + 16)
    blocks = sequences.blocks(length)
    expected = subject.reference(prompt)
    assert_close(sequences.step((prompt, 0, 290, blocks)), expected[289:290])
    assert_close(sequences.step((prompt, 290, length, blocks)), expected[-1:])


def test_copied_block_serves_two_choices(subject_named: Callable[[str], Subject]) -> None:
    subject = subject_named("llama-gqa")
    sequences = subject.sequences(8)
    prompt = subject.prompt(13)
    blocks = sequences.blocks(13)
    sequences.step((prompt, 0, 13, blocks))
    fork = (blocks[0], *sequences.blocks(1))
    sequences.runner.copy_block(blocks[1], fork[1])
    first, second = (*prompt, 5), (*prompt, 9)
    logits = sequences.step((first, 13, 14, blocks), (second, 13, 14, fork))
    assert_close(logits, torch.stack([subject.reference(tokens)[-1] for tokens in (first, second)]))


def test_layers_are_announced_in_order_once_their_kv_is_written(
    subject_named: Callable[[str], Subject],
) -> None:
    sequences = subject_named("llama-gqa").sequences(4)
    kv = sequences.runner.kv
    blocks = sequences.blocks(8)
    seen: list[tuple[int, list[bool]]] = []

    def written() -> list[bool]:
        return [not bool(keys[list(blocks)].isnan().any()) for keys in kv.keys]

    prompt = subject_named("llama-gqa").prompt(8)
    sequences.step((prompt, 0, 8, blocks), on_layer=lambda layer: seen.append((layer, written())))
    assert seen == [(0, [True, False, False]), (1, [True, True, False]), (2, [True, True, True])]


def test_items_that_do_not_sample_cost_no_logits(subject_named: Callable[[str], Subject]) -> None:
    sequences = subject_named("llama-gqa").sequences(4)
    prompt = subject_named("llama-gqa").prompt(6)
    item = StepItem(tokens=prompt, start=0, blocks=sequences.blocks(6))
    assert sequences.runner.run([item]) == [()]
    assert sequences._sampler.logits.numel() == 0
    assert sequences.runner.run([]) == []


def test_only_sampling_items_answer_in_the_order_given(subject_named: Callable[[str], Subject]) -> None:
    subject = subject_named("llama-gqa")
    sequences = subject.sequences(4)
    silent, loud = subject.prompt(9, 1), subject.prompt(5, 2)
    items = [
        StepItem(tokens=silent, start=0, blocks=sequences.blocks(9)),
        StepItem(tokens=loud, start=0, blocks=sequences.blocks(5), sample=sample_request(5, choices=(0, 1))),
        StepItem(tokens=loud[:1], start=0, blocks=sequences.blocks(1)),
    ]
    answers = sequences.runner.run(items)
    best = int(subject.reference(loud)[-1].argmax())
    assert [[sampled.token for sampled in answer] for answer in answers] == [[], [best, best], []]
