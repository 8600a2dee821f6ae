"""A model's tokens as the grammar library wants them: the very bytes that the gateway will make of them."""

from typing import Final

import msgspec
from llguidance import LLTokenizer, TokenizerWrapper

from services.text.tokenizer import Tokenizer

_SPECIMEN: Final = '{"name": "a", "arguments": {}}\n'
_NO_FORCING: Final = '%llguidance {"no_forcing": true}\n'


class Vocabulary(msgspec.Struct, frozen=True):
    """A tokenizer for grammars."""

    tokenizer: LLTokenizer
    spells_exactly: bool
    """A text's tokens are its bytes: where a grammar leaves one way to go on, the library may take the tokens that the
    model knows this text by. Other tokenizers put a space before a text, or drop one."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> "Vocabulary":
        """For logits of `vocab_size` tokens. Takes up to seconds. Raises ValueError where the library refuses."""
        pieces = [tokenizer.piece(token) for token in range(vocab_size)]
        hidden = [token for token in range(vocab_size) if pieces[token] and tokenizer.is_hidden(token)]
        spelled = b"".join(pieces[token] for token in tokenizer.encode(_SPECIMEN, add_special_tokens=False))
        source = _Source(tokenizer, pieces, hidden)
        return cls(LLTokenizer(TokenizerWrapper(source), n_vocab=vocab_size), spelled == _SPECIMEN.encode())

    def worded(self, grammar: str) -> str:
        """`grammar` as it is to be compiled for this vocabulary."""
        return grammar if self.spells_exactly else f"{_NO_FORCING}{grammar}"


class _Source:
    """What TokenizerWrapper reads; the names are the library's."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], hidden: list[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = pieces
        self.special_token_ids = hidden
        self.bos_token_id = None
        # One is enough: the engine treats all stop tokens alike. Without any the library adds an id of its own.
        self.eos_token_id = min((token for token in tokenizer.eos_ids if token < len(pieces)), default=None)

    def __call__(self, text: str | bytes) -> list[int]:
        words = text if isinstance(text, str) else text.decode(errors="replace")
        return list(self._tokenizer.encode(words, add_special_tokens=False))
