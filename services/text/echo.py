"""A prompt that is said again before its answers: its text and, where they are wanted, its tokens' logprobs."""

from collections.abc import Sequence

import msgspec

from common.messages.control import FinishReason
from common.messages.sampling import TokenLogprobs
from services.text.choice import TextDelta, TokenEntry
from services.text.tokenizer import Tokenizer


class EchoRules(msgspec.Struct, frozen=True):
    """What is said of a prompt."""

    tokens: tuple[int, ...]
    text: str | None
    """As the client sent it; None: the text of the tokens."""
    has_logprobs: bool
    is_all: bool
    """No answer follows: what the mesh sampled is not shown."""


class PromptEcho:
    """One prompt, made into text once for all its choices; used by one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, rules: EchoRules) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        self._logprobs: tuple[TokenLogprobs, ...] = ()
        self._made: tuple[str, tuple[TokenEntry, ...]] | None = None

    def hear(self, logprobs: tuple[TokenLogprobs, ...]) -> None:
        """What came with an event of a choice: of the prompt's tokens from the second on, or nothing."""
        self._logprobs = logprobs or self._logprobs

    def characters(self) -> int:
        """Of the prompt's text."""
        return len(self._text_and_entries()[0])

    def before(self, answer: TextDelta) -> TextDelta:
        """The first that a choice says, with the prompt before it."""
        text, entries = self._text_and_entries()
        if self._rules.is_all:
            return TextDelta(text, 0, FinishReason.LENGTH, entries)
        return TextDelta(text + answer.text, answer.tokens, answer.finish, (*entries, *answer.entries))

    def _text_and_entries(self) -> tuple[str, tuple[TokenEntry, ...]]:
        if self._made is None:
            offsets, decoded = self._decoded()
            text = decoded if self._rules.text is None else self._rules.text
            self._made = text, tuple(self._entries(offsets, len(text))) if self._rules.has_logprobs else ()
        return self._made

    def _decoded(self) -> tuple[list[int], str]:
        """The characters before each token, and the text of all."""
        detokenizer = self._tokenizer.detokenizer()
        offsets: list[int] = []
        pieces: list[str] = []
        length = 0
        for token in self._rules.tokens:
            offsets.append(length)
            pieces.append(detokenizer.push(token))
            length += len(pieces[-1])
        return offsets, "".join([*pieces, detokenizer.flush()])

    def _entries(self, offsets: Sequence[int], most: int) -> list[TokenEntry]:
        """The first token comes after nothing, and has no logprob."""
        piece, tokens = self._tokenizer.piece, self._rules.tokens
        entries = [TokenEntry(piece(tokens[0]), None, (), 0)]
        for token, logprobs, offset in zip(tokens[1:], self._logprobs, offsets[1:], strict=True):
            top = tuple((piece(other), logprob) for other, logprob in logprobs.top)
            # A text may have fewer characters than its tokens, where a tokenizer puts a space before it.
            entries.append(TokenEntry(piece(token), logprobs.chosen, top, min(offset, most)))
        return entries
