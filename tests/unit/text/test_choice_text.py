"""Tokens of one choice to text, counts and finish."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.messages.control import FinishReason
from common.messages.sampling import TokenLogprobs
from services.text.choice import ChoiceRules, ChoiceText, TextDelta
from services.text.tokenizer import Tokenizer

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_the_stop_token_counts_and_is_not_shown(byte_level_tokenizer: Tokenizer) -> None:
    letter = ids(byte_level_tokenizer, "x")[0]
    choice = ChoiceText(byte_level_tokenizer, ChoiceRules(stop_tokens=frozenset({letter})))
    assert choice.push([letter], None) == TextDelta("x", 1, None)
    assert choice.push([letter, letter], STOP) == TextDelta("x", 2, STOP)


def test_the_last_token_of_a_length_finish_is_shown(byte_level_tokenizer: Tokenizer) -> None:
    letter = ids(byte_level_tokenizer, "x")[0]
    choice = ChoiceText(byte_level_tokenizer, ChoiceRules(stop_tokens=frozenset({letter})))
    assert choice.push([letter], LENGTH) == TextDelta("x", 1, LENGTH)


def test_tokens_after_a_stop_string_are_not_counted(byte_level_tokenizer: Tokenizer) -> None:
    tokens = [*ids(byte_level_tokenizer, "z"), *ids(byte_level_tokenizer, "!"), *ids(byte_level_tokenizer, "?")]
    choice = ChoiceText(byte_level_tokenizer, ChoiceRules(stops=("z!",)))
    assert choice.push(tokens, LENGTH) == TextDelta("", 2, STOP)


def test_a_held_back_beginning_comes_out_at_the_end(byte_level_tokenizer: Tokenizer) -> None:
    choice = ChoiceText(byte_level_tokenizer, ChoiceRules(stops=("zz",)))
    letter = ids(byte_level_tokenizer, "z")[0]
    assert choice.push([letter], None) == TextDelta("", 1, None)
    assert choice.push([], LENGTH) == TextDelta("z", 0, LENGTH)


def test_a_stop_string_made_by_the_last_broken_character(byte_level_tokenizer: Tokenizer) -> None:
    half = ids(byte_level_tokenizer, "🦊")[:1]
    choice = ChoiceText(byte_level_tokenizer, ChoiceRules(stops=("\ufffd",)))
    assert choice.push(half, LENGTH) == TextDelta("", 1, STOP)


def test_the_first_min_tokens_are_not_searched(byte_level_tokenizer: Tokenizer) -> None:
    letter = ids(byte_level_tokenizer, "z")[0]
    choice = ChoiceText(byte_level_tokenizer, ChoiceRules(stops=("z",), min_tokens=2))
    assert choice.push([letter] * 4, None) == TextDelta("zz", 3, STOP)


def test_logprobs_have_bytes_and_offsets(byte_level_tokenizer: Tokenizer) -> None:
    tokens = [*ids(byte_level_tokenizer, "z"), *ids(byte_level_tokenizer, "🦊")]
    scores = [TokenLogprobs(-0.5, ((tokens[0], -0.5), (tokens[1], -2.0)))] * len(tokens)
    delta = ChoiceText(byte_level_tokenizer, ChoiceRules()).push(tokens, LENGTH, scores)
    assert delta.text == "z🦊"
    assert b"".join(entry.piece for entry in delta.entries) == "z🦊".encode()
    assert [entry.offset for entry in delta.entries] == [0, *[1] * (len(tokens) - 1)]
    assert delta.entries[0].top == ((b"z", -0.5), (delta.entries[1].piece, -2.0))


@given(
    stream=st.lists(st.integers(0, 329), max_size=30),
    cuts=st.sets(st.integers(0, 30)),
    stops=st.lists(st.sampled_from(["a", "he", "qu", "\ufffd", " "]), max_size=2),
    finish=st.sampled_from([STOP, LENGTH]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_do_not_change_the_answer(
    byte_level_tokenizer: Tokenizer, stream: list[int], cuts: set[int], stops: list[str], finish: FinishReason
) -> None:
    rules = ChoiceRules(stops=tuple(stops), stop_tokens=byte_level_tokenizer.eos_ids)
    whole = ChoiceText(byte_level_tokenizer, rules).push(stream, finish)
    assert answer_in_batches(ChoiceText(byte_level_tokenizer, rules), stream, sorted(cuts), finish) == whole


def answer_in_batches(choice: ChoiceText, stream: list[int], cuts: list[int], finish: FinishReason) -> TextDelta:
    text, tokens = "", 0
    edges = [0, *(cut for cut in cuts if 0 < cut < len(stream)), len(stream)]
    for start, end in itertools.pairwise(edges):
        delta = choice.push(stream[start:end], finish if end == len(stream) else None)
        text, tokens = text + delta.text, tokens + delta.tokens
        if delta.finish is not None:
            return TextDelta(text, tokens, delta.finish)
    pytest.fail("the stream never finished")
