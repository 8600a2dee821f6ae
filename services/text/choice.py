"""From the tokens of one choice to its text: detokenise, stop, count."""

from collections.abc import Sequence

import msgspec

from common.messages.control import FinishReason
from common.messages.sampling import TokenLogprobs
from services.text.stops import StopMatcher
from services.text.tokenizer import Tokenizer


class ChoiceRules(msgspec.Struct, frozen=True):
    """What ends a choice besides the mesh, and what is hidden of it."""

    stops: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    """A choice that finishes with one of these does not show it."""
    min_tokens: int = 0
    """The text of the first so many tokens is not searched for stop strings."""


class TokenEntry(msgspec.Struct, frozen=True):
    """One counted token with its logprobs. Pieces are the tokens' bytes, perhaps a part of a character."""

    piece: bytes
    logprob: float | None
    """None: it comes after nothing, as a prompt's first token does."""
    top: tuple[tuple[bytes, float], ...]
    """(piece, logprob), likeliest first."""
    offset: int
    """Characters of the choice's text before this token, those of an echoed prompt included."""


class TextDelta(msgspec.Struct, frozen=True):
    """What a batch of tokens added to a choice."""

    text: str
    tokens: int
    """Tokens counted: all up to the one that ended the choice, that one included."""
    finish: FinishReason | None
    entries: tuple[TokenEntry, ...] = ()
    """One per counted token where logprobs came with the tokens, else empty."""


class ChoiceText:
    """The text of one choice as it grows; owned by one stream, used by one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, rules: ChoiceRules, characters_before: int = 0) -> None:
        """`characters_before`: of an echoed prompt, from which the offsets of tokens are counted too."""
        self._tokenizer = tokenizer
        self._rules = rules
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopMatcher(rules.stops)
        self._num_tokens = 0
        self._num_characters = characters_before

    def push(
        self, tokens: Sequence[int], finish: FinishReason | None, logprobs: Sequence[TokenLogprobs] = ()
    ) -> TextDelta:
        """Add successive tokens; `finish` belongs to the last. Nothing may be pushed after a delta with a finish."""
        text: list[str] = []
        entries: list[TokenEntry] = []
        for i, token in enumerate(tokens):
            if logprobs:
                entries.append(self._entry(token, logprobs[i]))
            self._num_tokens += 1
            ends = finish is FinishReason.STOP and i == len(tokens) - 1
            if not (ends and token in self._rules.stop_tokens):
                text.append(self._pass(self._detokenizer.push(token)))
            if self._stops.matched is not None:
                return TextDelta("".join(text), i + 1, FinishReason.STOP, tuple(entries))
        if finish is not None:
            text.append(self._pass(self._detokenizer.flush()))
            if self._stops.matched is not None:
                finish = FinishReason.STOP
            text.append(self._stops.flush())
        return TextDelta("".join(text), len(tokens), finish, tuple(entries))

    def _pass(self, text: str) -> str:
        self._num_characters += len(text)
        return text if self._num_tokens <= self._rules.min_tokens else self._stops.push(text)

    def _entry(self, token: int, logprobs: TokenLogprobs) -> TokenEntry:
        top = tuple((self._tokenizer.piece(other), logprob) for other, logprob in logprobs.top)
        return TokenEntry(self._tokenizer.piece(token), logprobs.chosen, top, self._num_characters)
