"""Text ⇄ token ids of one model, from the files of its folder. Needs `tokenizers` only."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from common.errors import ModelError
from services.text.byte_level import ALPHABET, bytes_of_token
from services.text.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The named special tokens of a tokenizer_config.json, in transformers' order."""


class TokenizerSettings(msgspec.Struct, frozen=True):
    """What the files around tokenizer.json say about it."""

    special_tokens: dict[str, str] = {}
    """Name (one of SPECIAL_TOKEN_NAMES) to token."""
    eos_ids: frozenset[int] = frozenset()
    """Ids that end an answer besides the eos token's own."""


class Tokenizer:
    """Encodes and decodes as transformers' fast tokenizer of the same folder does. Safe to share by threads.

    Owns `backend` and changes it: no truncation, no padding, the named special tokens added.
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings | None = None) -> None:
        settings = settings or TokenizerSettings()
        self.special_tokens = dict(settings.special_tokens)
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        backend.add_special_tokens(_missing(backend, self.special_tokens.values()))
        self.eos_ids = settings.eos_ids | self._ids_named("eos_token")
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._hidden = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self._decoder_kinds = _decoder_kinds(backend)
        self._byte_table = self._bytes_of_tokens() if self._decoder_kinds == {"ByteLevel"} else None
        self._byte_tokens = self._byte_fallback_tokens()
        self._longest_token = self._longest() if self._byte_table and backend.normalizer is None else 0

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder; raises ModelError."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"no tokenizer.json in {str(folder)!r}; save the model's fast tokenizer there")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            # The library raises bare Exception for every defect of the file.
            raise ModelError(f"cannot read {str(path)!r}: {error}") from error
        return cls(backend, read_settings(folder))

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """The ids of `text`; with `add_special_tokens` also what tokenizer.json puts around a text (often bos).

        transformers too lets add_bos_token and add_eos_token of tokenizer_config.json have no say in this.
        """
        # Not backend.encode(): that holds the interpreter's lock, so that a text of megabytes stops every other thread.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def least_tokens(self, text: str) -> int:
        """No encoding of `text` has fewer tokens, found without encoding it; 0 where this vocabulary does not tell."""
        return -(-len(text) // self._longest_token) if self._longest_token else 0

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens; ids outside the vocabulary have none."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def is_hidden(self, token_id: int) -> bool:
        """Whether the token has no text: special, or outside the vocabulary."""
        return token_id in self._hidden or self._backend.id_to_token(token_id) is None

    def piece(self, token_id: int) -> bytes:
        """The bytes that the token stands for within a text (not at its start); a special token's name."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._hidden:
            return token.encode()
        if self._byte_table is not None:
            return self._byte_table[token_id] or b""
        if token_id in self._byte_tokens:
            return bytes([self._byte_tokens[token_id]])
        # Many decoders trim the start of a text: the token is shown after itself, where nothing is trimmed.
        return self.decode((token_id, token_id))[len(self.decode((token_id,))) :].encode()

    def detokenizer(self) -> Detokenizer:
        """A new incremental decoder for one stream of tokens."""
        if self._byte_table is not None:
            return ByteDetokenizer(self._byte_table)
        return WindowDetokenizer(self, self._byte_tokens, holds_partial="ByteLevel" in self._decoder_kinds)

    def _ids_named(self, name: str) -> frozenset[int]:
        token = self.special_tokens.get(name)
        token_id = None if token is None else self._backend.token_to_id(token)
        return frozenset() if token_id is None else frozenset({token_id})

    def _bytes_of_tokens(self) -> tuple[bytes | None, ...]:
        tokens = (self._backend.id_to_token(i) for i in range(self.vocab_size))
        return tuple(
            None if token is None or i in self._hidden else bytes_of_token(token) for i, token in enumerate(tokens)
        )

    def _longest(self) -> int:
        """Characters of the longest token; 0 where a text may have any number of characters for which no token stands:
        spaces that an added token takes in around it, bytes that are not in the vocabulary.
        """
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        takes_spaces = any(token.lstrip or token.rstrip for token in self._backend.get_added_tokens_decoder().values())
        if takes_spaces or not vocabulary.keys() >= ALPHABET:
            return 0
        # Byte-level tokens have a character for each byte, and a text has no more characters than bytes.
        return max(map(len, vocabulary))

    def _byte_fallback_tokens(self) -> dict[int, int]:
        if "ByteFallback" not in self._decoder_kinds:
            return {}
        ids = ((self._backend.token_to_id(f"<0x{byte:02X}>"), byte) for byte in range(256))
        return {token_id: byte for token_id, byte in ids if token_id is not None}


def read_settings(folder: Path) -> TokenizerSettings:
    """What tokenizer_config.json, generation_config.json and config.json of a model folder say; ModelError."""
    about = _read_object(folder / "tokenizer_config.json")
    named = {name: _token_text(about[name]) for name in SPECIAL_TOKEN_NAMES if about.get(name) is not None}
    eos_ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_object(folder / name).get("eos_token_id")
        eos_ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return TokenizerSettings(
        special_tokens=named,
        eos_ids=frozenset(eos_ids),
    )


def _missing(backend: tokenizers.Tokenizer, tokens: Iterable[str]) -> list[tokenizers.AddedToken]:
    """Those of `tokens` that the backend does not yet hold as special; what it holds keeps its own flags."""
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    return [tokenizers.AddedToken(t, special=True, normalized=False) for t in tokens if t not in known]


def _token_text(value: Any) -> str:
    return str(value["content"] if isinstance(value, dict) else value)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error}") from error


def _decoder_kinds(backend: tokenizers.Tokenizer) -> frozenset[str]:
    """The types of the decoders that make text of tokens, a sequence taken apart."""
    if backend.decoder is None:
        return frozenset()
    state = json.loads(backend.decoder.__getstate__())
    parts = state["decoders"] if state["type"] == "Sequence" else [state]
    return frozenset(part["type"] for part in parts)
