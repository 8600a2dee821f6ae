"""The numbers of a request's tokens: what was seen is dropped, nothing is skipped."""

import msgspec

from common.errors import PdmeshError
from common.messages.control import EmittedTokens


class NumberingError(PdmeshError):
    """A decode instance contradicts itself: tokens are missing, or a choice ends where it has gone on before."""


class TokenNumbers:
    """Which tokens of one request have been passed on, for each choice in [0, `choices`)."""

    def __init__(self, choices: int) -> None:
        self._next = [0] * choices
        self._open = set(range(choices))

    def accept(self, item: EmittedTokens) -> EmittedTokens | None:
        """The part of `item` not seen before, in O(its length); None when there is nothing new in it.

        Raises NumberingError for a gap, for an end before a token already seen and for a choice never asked for;
        the numbers are then as before.
        """
        choice = item.choice
        if not 0 <= choice < len(self._next):
            raise NumberingError(f"tokens of choice {choice}; the request has {len(self._next)}")
        if choice not in self._open:
            return None
        start, stop = self._next[choice], item.first + len(item.tokens)
        if item.first > start:
            raise NumberingError(f"choice {choice} goes on at token {item.first}; the next is {start}")
        if item.finish is not None:
            if stop < start:
                raise NumberingError(f"choice {choice} ends after {stop} tokens; {start} have come before")
            self._open.discard(choice)
        elif stop <= start:
            return None
        self._next[choice] = stop
        if item.first == start:
            return item
        seen = start - item.first
        return msgspec.structs.replace(
            item, first=start, tokens=item.tokens[seen:], logprobs=item.logprobs[seen:], prompt_logprobs=()
        )

    def is_complete(self) -> bool:
        """Whether every choice has ended."""
        return not self._open
