"""What an instance's blocks hold, kept for telling the gateway bit by bit."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

from common.kv.prefix import PrefixNews

MOST_KEYS: Final = 2048
"""In one heartbeat: 40 kB, and some 30,000 tokens of prompts."""


class PrefixJournal:
    """Knows every key that is held and which of the changes have not been told. On the event loop."""

    def __init__(self, most_keys: int = MOST_KEYS) -> None:
        self._most_keys = most_keys
        self._held: dict[bytes, None] = {}
        self._untold: dict[bytes, bool] = {}

    def note(self, news: PrefixNews) -> None:
        """What the engine says has changed."""
        for key in news.added:
            self._held[key] = None
            self._change(key, is_held=True)
        for key in news.removed:
            self._held.pop(key, None)
            self._change(key, is_held=False)

    def begin(self) -> None:
        """Who is told from now on knows nothing yet."""
        self._untold = dict.fromkeys(self._held, True)

    def take(self) -> PrefixNews | None:
        """What to tell now, the oldest changes first; None where there is nothing."""
        if not self._untold:
            return None
        told = dict(islice(self._untold.items(), self._most_keys))
        for key in told:
            del self._untold[key]
        return PrefixNews(_keys(told, is_held=True), _keys(told, is_held=False))

    def _change(self, key: bytes, *, is_held: bool) -> None:
        # What was not told and is no more true need not be told at all.
        if self._untold.pop(key, is_held) is is_held:
            self._untold[key] = is_held


def _keys(changes: dict[bytes, bool], *, is_held: bool) -> tuple[bytes, ...]:
    wanted: Iterable[bytes] = (key for key, held in changes.items() if held is is_held)
    return tuple(wanted)
