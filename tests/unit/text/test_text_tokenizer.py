"""Encoding as transformers does, and what the folder's files say."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from common.errors import ModelError
from services.text.tokenizer import Tokenizer, TokenizerSettings, read_settings

TEXTS = ["The capital of France is", "", " two  spaces\n", "日本語 😀", "<|im_start|>user\nhi<|im_end|>", "naïve\u200b"]


def test_the_real_model_encodes_and_decodes_as_transformers(smollm2_folder: Path) -> None:
    ours, theirs = Tokenizer.load(smollm2_folder), AutoTokenizer.from_pretrained(smollm2_folder)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert list(ids) == theirs.encode(text, add_special_tokens=special)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.eos_ids == {theirs.eos_token_id}
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}])
def test_bos_is_added_as_transformers_does(tmp_path: Path, adds_bos: bool, config: dict[str, bool]) -> None:
    backend = words_with_bos() if adds_bos else words()
    backend.save(str(tmp_path / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|new|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**about, **config}))
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert list(ours.encode("the fox", add_special_tokens=True)) == theirs.encode("the fox")
    assert (len(ours.encode("the fox", add_special_tokens=True)) == 3) is adds_bos
    assert ours.eos_ids == {theirs.eos_token_id}
    assert ours.decode(ours.encode("the<|new|>", add_special_tokens=False)) == "the"


def words() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({"<|start|>": 0, "the": 1, "fox": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def words_with_bos() -> tokenizers.Tokenizer:
    backend = words()
    backend.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 0)])
    return backend


def test_eos_ids_are_gathered_from_all_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>", "lstrip": false}}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 9}')
    settings = read_settings(tmp_path)
    assert settings == TokenizerSettings(special_tokens={"eos_token": "<|end|>"}, eos_ids=frozenset({7, 8, 9}))


def test_the_eos_token_itself_is_an_eos_id(byte_level_tokenizer: Tokenizer) -> None:
    (eos,) = byte_level_tokenizer.eos_ids
    assert byte_level_tokenizer.piece(eos) == b"<|end|>"
    assert byte_level_tokenizer.is_hidden(eos)


def test_pieces_joined_are_the_bytes_of_a_text(byte_level_tokenizer: Tokenizer) -> None:
    ids = byte_level_tokenizer.encode("🦊 añadido", add_special_tokens=False)
    assert b"".join(byte_level_tokenizer.piece(i) for i in ids).decode() == "🦊 añadido"


def test_a_piece_keeps_the_space_that_the_start_of_a_text_loses(sentencepiece_tokenizer: Tokenizer) -> None:
    pieces = {sentencepiece_tokenizer.piece(i) for i in range(sentencepiece_tokenizer.vocab_size)}
    assert {b" the", b"the", b" ", b"\xf0", "日本".encode()} <= pieces


LONG_TEXTS = [
    "",
    "x",
    "the quick brown fox " * 50,
    "added word" * 40,
    "naïve▁" * 40,
    "😀" * 90,
    "\x00\x7f" * 90,
    " " * 300,
]


@pytest.mark.parametrize("text", LONG_TEXTS)
def test_no_text_has_fewer_tokens_than_the_least(small_tokenizer: Tokenizer, text: str) -> None:
    assert small_tokenizer.least_tokens(text) <= len(small_tokenizer.encode(text, add_special_tokens=False))


def test_the_least_tells_a_text_of_megabytes(byte_level_tokenizer: Tokenizer) -> None:
    assert byte_level_tokenizer.least_tokens("x" * 1_000_000) > 10_000


@pytest.mark.parametrize("added", [{"lstrip": True}, {"rstrip": True}])
def test_an_added_token_that_takes_in_spaces_leaves_no_least(added: dict[str, bool]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([tokenizers.AddedToken("<mask>", **added)])
    tokenizer = Tokenizer(backend)
    text = f"{' ' * 500}<mask>{' ' * 500}"
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_bytes_that_are_no_tokens_leave_no_least() -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend)
    text = "a" + "z" * 500
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_a_folder_without_tokenizer_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json in .*save"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot read"):
        Tokenizer.load(tmp_path)
