"""Incremental detokenisation: the pieces joined are exactly the one-shot decode of all tokens.

No piece ever ends within a UTF-8 character, so that a piece can be sent as it is.
"""

import codecs
from collections.abc import Collection, Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """Makes text of one stream of tokens; owned by that stream."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character may still be incomplete."""
        ...

    def flush(self) -> str:
        """The rest of the text at the end of the stream; what is incomplete becomes U+FFFD."""
        ...


class Decodes(Protocol):
    """What the window needs of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        ...

    def is_hidden(self, token_id: int) -> bool:
        """Whether the token has no text."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies: a token is bytes, so the text is an incremental UTF-8 decode of them."""

    def __init__(self, byte_table: Sequence[bytes | None]) -> None:
        self._byte_table = byte_table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """See Detokenizer."""
        piece = self._byte_table[token_id] if token_id < len(self._byte_table) else None
        return "" if piece is None else self._decoder.decode(piece)

    def flush(self) -> str:
        """See Detokenizer."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For every other vocabulary: decode a short window and take what is new against its settled beginning.

    The settled tokens stay in the window because decoders treat the start of a text differently (they trim a
    space, or leave one out).
    """

    def __init__(self, tokenizer: Decodes, byte_tokens: Collection[int], *, holds_partial: bool) -> None:
        self._tokenizer = tokenizer
        self._byte_tokens = byte_tokens
        self._holds_partial = holds_partial
        self._window: list[int] = []
        self._settled = ""

    def push(self, token_id: int) -> str:
        """See Detokenizer."""
        if self._tokenizer.is_hidden(token_id):
            return ""
        self._window.append(token_id)
        # Byte fallback decodes a run of byte tokens as a whole: one wrong byte turns all of them into U+FFFD.
        if token_id in self._byte_tokens:
            return ""
        text = self._tokenizer.decode(self._window)
        if self._holds_partial and text.endswith("\ufffd"):
            return ""
        return self._settle(text, [token_id])

    def flush(self) -> str:
        """See Detokenizer."""
        return self._settle(self._tokenizer.decode(self._window), [])

    def _settle(self, text: str, kept: list[int]) -> str:
        new = text[len(self._settled) :]
        if new:
            self._window = kept
            self._settled = self._tokenizer.decode(kept)
        return new
