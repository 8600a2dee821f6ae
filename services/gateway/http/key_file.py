"""The file of API keys, read again when it changes: a key is taken back without a restart."""

import logging
import os
from pathlib import Path
from typing import Final

from common.clock import Clock
from common.errors import ConfigError
from services.gateway.http.api_keys import KeyLines, StoredKey, owner_among, read_lines

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""How long a key that was taken back may still be used."""

_Seen = tuple[int, int, int]


class KeyFile:
    """Knows the keys of the file as it was at most LOOK_EVERY_S ago. Owned by the event loop.

    A line that is no key is told in the log and lets nobody in. A file that cannot be read any more lets nobody in.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises ConfigError for a file that cannot be read, or has a line that is no key."""
        self._path = path
        self._clock = clock
        try:
            self._seen: _Seen | None
            self._seen, read = self._read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"gateway.api_keys: cannot read {str(path)!r}: {error}; `pdmesh keys api NAME --file {path}` makes it"
            ) from error
        if read.problems:
            raise ConfigError(f"gateway.api_keys: {str(path)!r}: {'; '.join(read.problems)}")
        self._keys: tuple[StoredKey, ...] = read.keys
        self._look_at = clock.now() + LOOK_EVERY_S

    def owner_of(self, key: str) -> str | None:
        """See KeyRing."""
        if self._clock.now() >= self._look_at:
            self._look()
        return owner_among(key, self._keys)

    def _look(self) -> None:
        self._look_at = self._clock.now() + LOOK_EVERY_S
        try:
            if _stamp(self._path) == self._seen:
                return
            self._seen, read = self._read()
        except (OSError, UnicodeDecodeError) as error:
            if self._seen is not None:
                _log.error("the API keys in %s cannot be read, and nobody is let in: %s", self._path, error)
            self._keys, self._seen = (), None
            return
        self._keys = read.keys
        _log.info("%d API keys were read from %s", len(read.keys), self._path)
        for problem in read.problems:
            _log.error("%s: %s", self._path, problem)

    def _read(self) -> tuple[_Seen, KeyLines]:
        # The stamp is taken first: what is written meanwhile is read the next time.
        seen = _stamp(self._path)
        return seen, read_lines(self._path.read_text(encoding="utf-8"))


def _stamp(path: Path) -> _Seen:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino
