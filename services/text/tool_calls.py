"""Reads the calls in an answer's text as it grows: the form of `services.text.tools` back into names and arguments."""

import re
from enum import Enum, auto
from typing import Final

import msgspec

from services.text.tools import ARGUMENTS_HEAD, BETWEEN, CLOSING, NAME_HEAD, OPENING


class Words(msgspec.Struct, frozen=True):
    """Text that belongs to no call."""

    text: str


class CallOpened(msgspec.Struct, frozen=True):
    """A call of the function `name` begins. Calls are numbered from 0."""

    index: int
    name: str


class CallGrown(msgspec.Struct, frozen=True):
    """More of the JSON text of a call's arguments."""

    index: int
    arguments: str


CallEvent = Words | CallOpened | CallGrown


class _At(Enum):
    WORDS = auto()
    NAME = auto()
    """The marker has been read."""
    ARGUMENTS = auto()
    CLOSING = auto()
    """The last brace of the arguments has been read."""
    BETWEEN = auto()


_SIGNS: Final = re.compile(r'["\\{}\[\]]')


class CallReader:
    """Reads one choice. Give it an answer held to `tools.calls_grammar`, cut anywhere; owned by one stream.

    White space between words and a call belongs to neither.
    """

    def __init__(self) -> None:
        self._at = _At.WORDS
        self._held = ""
        self._index = -1
        self._depth = 0
        self._is_in_string = False
        self._skips = False

    @property
    def has_called(self) -> bool:
        """At least one call has been read, and the last one to its end."""
        return self._at is _At.BETWEEN

    def push(self, text: str) -> list[CallEvent]:
        """What `text` adds."""
        self._held += text
        events: list[CallEvent] = []
        before: tuple[_At, int] | None = None
        # Until nothing changes: every state takes what it can and leaves the rest.
        while before != (before := (self._at, len(self._held))):
            events += self._take()
        return events

    def flush(self) -> list[CallEvent]:
        """The end of the text has come: what was held back of the words belongs to them."""
        rest, self._held = self._held, ""
        return [Words(rest)] if rest and self._at is _At.WORDS else []

    def _take(self) -> list[CallEvent]:
        match self._at:
            case _At.WORDS:
                return self._take_words()
            case _At.NAME:
                return self._take_name()
            case _At.ARGUMENTS:
                return self._take_arguments()
            case _At.CLOSING:
                self._skip(CLOSING, _At.BETWEEN)
            case _At.BETWEEN:
                self._skip(BETWEEN + OPENING, _At.NAME)
        return []

    def _take_words(self) -> list[CallEvent]:
        end = self._held.find(OPENING)
        if end >= 0:
            words, self._held, self._at = self._held[:end].rstrip(), self._held[end + len(OPENING) :], _At.NAME
        else:
            end = len(self._held) - _overlap(self._held, OPENING)
            words = self._held[:end].rstrip()
            self._held = self._held[len(words) :]
        return [Words(words)] if words else []

    def _take_name(self) -> list[CallEvent]:
        end = self._held.find(ARGUMENTS_HEAD)
        if end < 0:
            return []
        name, self._held = self._held[len(NAME_HEAD) : end], self._held[end + len(ARGUMENTS_HEAD) :]
        self._at, self._depth, self._index = _At.ARGUMENTS, 0, self._index + 1
        return [CallOpened(self._index, name)]

    def _take_arguments(self) -> list[CallEvent]:
        end = self._end_of_arguments()
        if end is None:
            grown, self._held = self._held, ""
        else:
            grown, self._held, self._at = self._held[:end], self._held[end:], _At.CLOSING
        return [CallGrown(self._index, grown)] if grown else []

    def _end_of_arguments(self) -> int | None:
        """Where in `_held` the arguments' object has been closed; None: not in this."""
        escaped_at = 0 if self._skips else -1
        self._skips = False
        for found in _SIGNS.finditer(self._held):
            if found.start() == escaped_at:
                continue
            sign = found[0]
            if sign == "\\":
                escaped_at = found.end()
            elif sign == '"':
                self._is_in_string = not self._is_in_string
            elif not self._is_in_string:
                self._depth += 1 if sign in "{[" else -1
                if self._depth == 0:
                    return found.end()
        # A backslash at the very end escapes what comes next.
        self._skips = escaped_at == len(self._held)
        return None

    def _skip(self, literal: str, then: _At) -> None:
        if self._held.startswith(literal):
            self._held, self._at = self._held[len(literal) :], then


def _overlap(text: str, marker: str) -> int:
    """Characters of the longest end of `text` with which `marker` begins."""
    return max((n for n in range(1, min(len(text), len(marker)) + 1) if text.endswith(marker[:n])), default=0)
