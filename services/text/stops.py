"""Stop strings: find them across tokens, and never let a part of one out."""

from collections.abc import Sequence


class StopMatcher:
    """Cuts one text before the first stop string. Owned by that text's stream.

    The match that is complete first wins; of two that end at the same character, the one that starts earlier.
    So the result does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError(f"a stop string must have at least one character, got {tuple(stops)!r}")
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a stop string; nothing more after a match."""
        if self.matched is not None:
            return ""
        text = self._held + text
        if (match := self._first_match(text)) is not None:
            start, self.matched = match
            self._held = ""
            return text[:start]
        keep = len(text) - self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The end of the text has come: what was held back belongs to it."""
        rest, self._held = self._held, ""
        return rest

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = ((text.find(stop), stop) for stop in self._stops)
        matches = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop

    def _possible_start(self, text: str) -> int:
        """Where the longest end of `text` that begins a stop string starts; len(text) if there is none."""
        return min((_start_of_prefix(text, stop) for stop in self._stops), default=len(text))


def _start_of_prefix(text: str, stop: str) -> int:
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return start
        start = text.find(stop[0], start + 1)
    return len(text)
