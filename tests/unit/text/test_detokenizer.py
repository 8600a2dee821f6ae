"""The pieces of a stream are the one-shot decode, and no piece cuts a character."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.text.tokenizer import Tokenizer

streams = st.lists(st.integers(min_value=0, max_value=10_000), max_size=40)
texts = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ["😀🎉", "👩‍👩‍👧 日本", "naïve", "a\ufffdb"]
)
same_tokenizer = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@given(stream=streams)
@same_tokenizer
def test_any_stream_gives_the_one_shot_decode(small_tokenizer: Tokenizer, stream: list[int]) -> None:
    # One more than the vocabulary: an id without a token is part of the game.
    tokens = [token % (small_tokenizer.vocab_size + 1) for token in stream]
    assert "".join(pieces(small_tokenizer, tokens)) == small_tokenizer.decode(tokens)


@given(stream=st.lists(st.integers(min_value=0, max_value=258), max_size=24), data=st.binary(max_size=12))
@same_tokenizer
def test_byte_tokens_give_the_one_shot_decode(
    sentencepiece_tokenizer: Tokenizer, stream: list[int], data: bytes
) -> None:
    tokens = [*stream, *(2 + byte for byte in data), 2 + 256 + 1, *stream]
    assert "".join(pieces(sentencepiece_tokenizer, tokens)) == sentencepiece_tokenizer.decode(tokens)


@given(text=texts)
@same_tokenizer
def test_no_piece_ends_within_a_character(byte_level_tokenizer: Tokenizer, text: str) -> None:
    tokens = byte_level_tokenizer.encode(text, add_special_tokens=False)
    parts = pieces(byte_level_tokenizer, tokens)
    assert "".join(parts) == text
    assert sum(part.count("\ufffd") for part in parts) == text.count("\ufffd")


def test_an_emoji_of_four_byte_tokens_comes_whole(byte_level_tokenizer: Tokenizer) -> None:
    tokens = byte_level_tokenizer.encode("🦊", add_special_tokens=False)
    assert len(tokens) > 1
    assert pieces(byte_level_tokenizer, tokens) == [*[""] * (len(tokens) - 1), "🦊", ""]


def test_an_unfinished_character_shows_at_the_end_only(byte_level_tokenizer: Tokenizer) -> None:
    tokens = byte_level_tokenizer.encode("🦊", add_special_tokens=False)[:-1]
    assert pieces(byte_level_tokenizer, tokens) == [*[""] * len(tokens), "\ufffd"]


def test_text_comes_at_once_where_nothing_is_incomplete(small_tokenizer: Tokenizer) -> None:
    pieces_of = {t: small_tokenizer.piece(t) for t in range(small_tokenizer.vocab_size)}
    words = [t for t, piece in pieces_of.items() if piece.strip().isalpha() and len(piece) > 2]
    detokenizer = small_tokenizer.detokenizer()
    assert words
    assert all(detokenizer.push(token) for token in words)


@given(stream=streams, text=texts)
@settings(deadline=None)
def test_the_real_model_too(real: Tokenizer, stream: list[int], text: str) -> None:
    tokens = [*real.encode(text, add_special_tokens=False), *(token * 5 % real.vocab_size for token in stream)]
    assert "".join(pieces(real, tokens)) == real.decode(tokens)


@pytest.fixture(scope="module")
def real(smollm2_folder: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_folder)
