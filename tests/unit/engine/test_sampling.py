"""What is sampled, against slow and independent references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from common.messages.sampling import SamplingParams
from services.engine.runner import Sampled, SampleRequest
from services.engine.sampling.noise import gumbel_noise, noise_bits, noise_key, uniform_from
from services.engine.sampling.sampling import Sampler

VOCAB = 512


def ask(*, choices=(0,), position=7, prompt=(), output=(), forbidden=(), **params) -> SampleRequest:
    return SampleRequest(SamplingParams(**params), choices, position, prompt, output, forbidden)


def random_logits(rows: int, vocab: int = VOCAB, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def tokens_of(sampled: list[tuple[Sampled, ...]]) -> list[tuple[int, ...]]:
    return [tuple(one.token for one in row) for row in sampled]


def draw(row: torch.Tensor, request: SampleRequest) -> tuple[int, ...]:
    return tokens_of(Sampler().sample(row[None], [request]))[0]


# ---------------------------------------------------------------- noise


def reference_mix(value: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    value %= 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def reference_bits(seed: int, choice: int, position: int, token: int) -> int:
    state = 0
    for part in (seed, choice, position, token):
        state = reference_mix(state + (part + 1) * 0x9E3779B97F4A7C15)
    return state


def test_mix_is_that_of_splitmix64():
    """The published first outputs of SplitMix64 seeded with 1234567."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [reference_mix(1234567 + n * gamma) for n in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(
    seed=st.integers(-(2**63), 2**64),
    choice=st.integers(0, 2**20),
    position=st.integers(0, 2**31),
    tokens=st.lists(st.integers(0, 2**31), min_size=1, max_size=8),
)
def test_noise_bits_equal_the_scalar_reference(seed, choice, position, tokens):
    key = noise_key(seed, choice, position)
    signed = torch.tensor([key - 2**64 if key >= 2**63 else key])
    bits = [value % 2**64 for value in noise_bits(signed, torch.tensor(tokens))[0].tolist()]
    assert bits == [reference_bits(seed, choice, position, token) for token in tokens]


def test_gumbel_noise_equals_the_scalar_reference():
    noise = gumbel_noise([noise_key(5, 1, 9)], torch.arange(1000))[0].tolist()
    for token, value in enumerate(noise):
        uniform = ((reference_bits(5, 1, 9, token) >> 12) + 0.5) * 2.0**-52
        assert value == pytest.approx(-math.log(-math.log(uniform)), rel=1e-12, abs=1e-12)


def test_uniform_noise_is_open_at_both_ends():
    lowest, highest = uniform_from(torch.tensor([0, -1])).tolist()
    assert 0.0 < lowest < 1e-15
    assert 1 - 1e-15 < highest < 1.0


def test_noise_uses_all_of_the_unit_interval():
    uniform = uniform_from(noise_bits(torch.tensor([noise_key(0, 0, 0) >> 1]), torch.arange(1 << 17)))[0]
    counts = torch.histc(uniform, bins=16, min=0.0, max=1.0)
    expected = (1 << 17) / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI_SQUARE_15


CHI_SQUARE_15 = 44.3
"""Quantile 0.9999 of the chi-square distribution with 15 degrees of freedom."""


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("key", ["seed", "choice", "position"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_draws_follow_the_softmax(key, temperature):
    """Whatever part of the key varies, the draws are independent enough for a chi-square test."""
    row = random_logits(1, vocab=16, scale=1.0)[0]
    count = 4000
    if key == "choice":
        drawn = list(draw(row, ask(temperature=temperature, choices=tuple(range(count)))))
    else:
        requests = [
            ask(temperature=temperature, seed=n if key == "seed" else 1, position=n if key == "position" else 1)
            for n in range(count)
        ]
        drawn = [t for (t,) in tokens_of(Sampler().sample(row.expand(count, -1), requests))]
    expected = torch.softmax(row.double() / temperature, dim=0) * count
    counts = torch.bincount(torch.tensor(drawn), minlength=16)
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI_SQUARE_15


def test_a_draw_is_the_argmax_of_scores_and_noise():
    row = random_logits(1)[0]
    scores = row.double() / 0.8 + gumbel_noise([noise_key(3, 2, 11)], torch.arange(VOCAB))[0]
    assert draw(row, ask(temperature=0.8, seed=3, choices=(2,), position=11)) == (int(scores.argmax()),)


def mixed_requests() -> list[SampleRequest]:
    return [
        ask(temperature=0.0),
        ask(seed=1),
        ask(seed=1, top_k=40, choices=(0, 1, 2)),
        ask(temperature=0.0, repetition_penalty=1.4, prompt=(1, 2), output=(3,), choices=(0, 1)),
        ask(seed=2, top_p=0.8, temperature=1.3, logprobs=3),
        ask(seed=3, min_p=0.05, frequency_penalty=0.5, output=(5, 5, 6)),
        ask(temperature=0.0, forbidden=(0,), logprobs=0),
        ask(seed=-4, top_k=9, top_p=0.9, min_p=0.01, choices=()),
    ]


def test_a_row_is_sampled_the_same_alone_and_in_any_batch():
    logits, requests = random_logits(8), mixed_requests()
    together = Sampler().sample(logits, requests)
    alone = [Sampler().sample(logits[i : i + 1], [request])[0] for i, request in enumerate(requests)]
    backwards = Sampler().sample(logits.flip(0), requests[::-1])[::-1]
    assert together == alone == backwards
    assert [len(row) for row in together] == [len(request.choices) for request in requests]


def test_choices_are_sampled_the_same_together_and_apart():
    row = random_logits(1)[0]
    together = draw(row, ask(top_p=0.9, choices=(0, 1, 2, 3)))
    assert together == tuple(draw(row, ask(top_p=0.9, choices=(n,)))[0] for n in range(4))


def test_seeds_choices_and_positions_give_different_draws():
    flat = torch.zeros(50_000)
    draws = [ask(), ask(seed=1), ask(choices=(1,)), ask(position=8), ask(seed=1, choices=(1,))]
    assert len({draw(flat, request) for request in draws}) == len(draws)


def test_small_noise_in_the_logits_seldom_changes_a_draw():
    count = 2000
    row = random_logits(1, scale=2.0)[0]
    noisy = row + random_logits(count, seed=1, scale=1e-4)
    requests = [ask(seed=n) for n in range(count)]
    before = tokens_of(Sampler().sample(row.expand(count, -1), requests))
    after = tokens_of(Sampler().sample(noisy, requests))
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 2
    assert len(set(before)) > 100


def test_logits_are_not_modified():
    logits = random_logits(8)
    before = logits.clone()
    Sampler().sample(logits, mixed_requests())
    assert torch.equal(logits, before)


# ---------------------------------------------------------------- greedy


def test_greedy_takes_the_lowest_id_of_an_exact_tie():
    logits = torch.zeros(3, VOCAB)
    logits[1, 300] = logits[1, 301] = 1.0
    requests = [ask(temperature=0.0)] * 3
    assert tokens_of(Sampler().sample(logits, requests)) == [(0,), (300,), (0,)]


@pytest.mark.parametrize("tied", [False, True])
def test_top_k_of_one_is_greedy(tied):
    logits = random_logits(50).round() if tied else random_logits(50)
    greedy = Sampler().sample(logits, [ask(temperature=0.0)] * 50)
    assert Sampler().sample(logits, [ask(top_k=1, seed=n) for n in range(50)]) == greedy


@pytest.mark.parametrize("params", [{"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-300}])
def test_narrowest_filters_are_greedy(params):
    logits = random_logits(20)
    greedy = Sampler().sample(logits, [ask(temperature=0.0)] * 20)
    assert Sampler().sample(logits, [ask(seed=n, **params) for n in range(20)]) == greedy


def test_no_rows_give_no_samples():
    assert Sampler().sample(torch.empty(0, VOCAB), []) == []


def test_rows_and_requests_must_agree():
    with pytest.raises(ValueError, match="2 rows of logits for 1 requests"):
        Sampler().sample(random_logits(2), [ask()])


# ---------------------------------------------------------------- filters


def reference_kept(row: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The filters one token at a time, likeliest first."""
    likeliest = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if top_k:
        likeliest = likeliest[:top_k]
    weights = [math.exp((float(row[t]) - float(row.max())) / temperature) for t in likeliest]
    total = math.fsum(weights)
    kept, mass = [], 0.0
    for token, weight in zip(likeliest, weights, strict=True):
        if not kept or mass < top_p:
            kept.append((token, weight))
        mass += weight / total
    return {token for token, weight in kept if weight >= min_p}


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(st.integers(-40, 40), min_size=2, max_size=24).map(lambda values: [v / 8 for v in values]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 30),
    top_p=st.sampled_from([0.1013, 0.513, 0.9017, 0.977, 1.0]),
    min_p=st.sampled_from([0.0, 0.0213, 0.317, 0.9]),
)
def test_what_can_be_drawn_is_what_the_filters_keep(row, temperature, top_k, top_p, min_p):
    """With 300 seeds every draw is in the reference's set, and equals Gumbel-max over exactly that set."""
    kept = torch.tensor(sorted(reference_kept(np.array(row), temperature, top_k, top_p, min_p)))
    logits = torch.tensor(row)
    choices = tuple(range(300))
    drawn = draw(logits, ask(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, choices=choices))
    noise = gumbel_noise([noise_key(0, choice, 7) for choice in choices], kept)
    winners = (noise + logits.double()[kept] / temperature).argmax(dim=1)
    assert drawn == tuple(kept[winners].tolist())


@pytest.mark.parametrize("top_p", [0.05003, 0.50003, 0.90003, 0.999983])
@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_top_p_is_exact_in_large_vocabularies(top_p, scale):
    """Also where more than the tokens ranked first are needed, and where they are all tied."""
    row = random_logits(1, vocab=20_000, scale=scale)[0]
    order = row.sort(descending=True, stable=True).indices
    probabilities = torch.softmax(row.double(), dim=0)[order]
    count = int(((probabilities.cumsum(0) - probabilities) < top_p).sum())
    kept = order[:count]
    choices = tuple(range(100))
    noise = gumbel_noise([noise_key(0, choice, 7) for choice in choices], kept)
    expected = kept[(noise + row.double()[kept]).argmax(dim=1)].tolist()
    assert list(draw(row, ask(top_p=top_p, choices=choices))) == expected


# ---------------------------------------------------------------- penalties and bias


def greedy_order(row: torch.Tensor, count: int, **params) -> list[int]:
    """The greedy tokens of `count` calls, each forbidding those before."""
    found: list[int] = []
    for _ in range(count):
        found += draw(row, ask(temperature=0.0, forbidden=tuple(found), **params))
    return found


@pytest.mark.parametrize("penalty", [0.5, 1.2, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty):
    row = random_logits(1, vocab=64)[0]
    prompt, output = (3, 5, 5, 9, 40), (9, 63, 0)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([prompt + output]), row[None].clone())[0]
    found = greedy_order(row, 40, repetition_penalty=penalty, prompt=prompt, output=output)
    assert found == expected.sort(descending=True).indices[:40].tolist()


def test_frequency_and_presence_count_output_tokens_only():
    row = random_logits(1, vocab=64)[0]
    output = (1, 1, 1, 7, 30, 30)
    expected = row.clone()
    for token in set(output):
        expected[token] -= 0.6 * output.count(token) + 0.9
    found = greedy_order(row, 40, frequency_penalty=0.6, presence_penalty=0.9, prompt=(2, 3, 1, 50), output=output)
    assert found == expected.sort(descending=True).indices[:40].tolist()


def test_penalties_apply_in_the_stated_order():
    """Repetition scales first, then frequency and presence, then bias."""
    row = torch.tensor([4.0, 0.0, -5.0])
    request = {"repetition_penalty": 2.0, "presence_penalty": 0.5, "frequency_penalty": 0.25, "output": (0, 0)}
    # 4 / 2 - 0.5 - 2 * 0.25 = 1
    assert draw(row, ask(temperature=0.0, logit_bias={1: 0.99}, **request)) == (0,)
    assert draw(row, ask(temperature=0.0, logit_bias={1: 1.01}, **request)) == (1,)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bias_of_a_hundred_forces_and_bans(temperature):
    row = random_logits(1)[0]
    choices = tuple(range(50))
    forced = draw(row, ask(temperature=temperature, logit_bias={17: 100.0}, choices=choices))
    assert set(forced) == {17}
    best = int(row.argmax())
    assert best in draw(row, ask(temperature=temperature, choices=choices))
    banned = draw(row, ask(temperature=temperature, logit_bias={best: -100.0}, choices=choices))
    assert best not in banned


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_are_never_sampled_whatever_the_bias(temperature):
    row = torch.zeros(4)
    request = ask(temperature=temperature, forbidden=(0, 2), logit_bias={0: 100.0, 2: 100.0}, choices=tuple(range(64)))
    assert set(draw(row, request)) <= {1, 3}


def test_ids_outside_the_vocabulary_have_no_effect():
    row = random_logits(1)[0]
    stray = {VOCAB: 100.0, 10**12: 100.0, -1: 100.0}
    request = ask(temperature=0.0, logit_bias=stray, forbidden=(VOCAB, -1), choices=(0,))
    assert draw(row, request) == (int(row.argmax()),)


# ---------------------------------------------------------------- logprobs


@pytest.mark.parametrize("asked", [0, 1, 5, VOCAB + 10])
def test_logprobs_are_of_the_unmodified_logits(asked):
    logits = random_logits(2)
    request = ask(seed=3, temperature=2.0, top_k=50, logit_bias={5: 4.0}, logprobs=asked, choices=(0, 1), output=(9,))
    plain, rows = Sampler().sample(logits, [ask(temperature=0.0), request])
    assert all(one.logprobs is None for one in plain)
    expected = torch.log_softmax(logits[1], dim=-1)
    best = expected.sort(descending=True)
    for one in rows:
        assert one.logprobs is not None
        assert one.logprobs.chosen == float(expected[one.token])
        assert [token for token, _ in one.logprobs.top] == best.indices[:asked].tolist()
        assert [value for _, value in one.logprobs.top] == best.values[:asked].tolist()
