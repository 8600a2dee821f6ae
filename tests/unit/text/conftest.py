"""Small tokenizers of every shape, and the real one."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from services.text.tokenizer import Tokenizer, TokenizerSettings

CORPUS = [
    "the quick brown fox jumps",
    "über straße naïve café",
    "日本語のテキスト",
    "emoji 😀🎉 👩‍👩‍👧",
    "a b  c\n\td",
] * 3
SPECIAL = ["<|start|>", "<|end|>"]


def byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens(["added word", "naïve▁"])
    return backend


def _pieces() -> dict[str, int]:
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁the", "the", "▁▁", "x", "é", "日本", "▁fox", ".", "▁.", "\ufffd", "\n"]
    return {token: i for i, token in enumerate(tokens)}


def sentencepiece() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=_pieces(), merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIAL)
    return backend


def metaspace() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=_pieces(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(SPECIAL)
    return backend


def word_piece() -> tokenizers.Tokenizer:
    words = [*SPECIAL, "[UNK]", "the", "fox", "##es", "##.", ".", ",", "'", "s", "n't", "do", "日"]
    backend = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(SPECIAL)
    return backend


def word_end() -> tokenizers.Tokenizer:
    words = [*SPECIAL, "a", "b</w>", "fox</w>", "es", "日</w>"]
    backend = tokenizers.Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    backend.add_special_tokens(SPECIAL)
    return backend


def byte_level_in_sequence() -> tokenizers.Tokenizer:
    backend = byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("q", "Q")])
    return backend


def no_decoder() -> tokenizers.Tokenizer:
    backend = metaspace()
    backend.decoder = None
    return backend


SHAPES = {
    make.__name__: make
    for make in (byte_level, sentencepiece, metaspace, word_piece, word_end, byte_level_in_sequence, no_decoder)
}


@pytest.fixture(scope="session", params=sorted(SHAPES))
def small_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(SHAPES[request.param](), TokenizerSettings())


@pytest.fixture(scope="session")
def byte_level_backend() -> tokenizers.Tokenizer:
    return byte_level()


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Tokenizer:
    return Tokenizer(byte_level(), TokenizerSettings(special_tokens={"eos_token": "<|end|>"}))


@pytest.fixture(scope="session")
def sentencepiece_tokenizer() -> Tokenizer:
    return Tokenizer(sentencepiece(), TokenizerSettings())
