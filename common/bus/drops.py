"""What the bus could not use: counted always, logged seldom."""

import logging
from collections.abc import Callable

from common.clock import Clock
from common.logs import LimitedLog

_log = logging.getLogger(__name__)


def _ignore() -> None:
    pass


class Drops:
    """Counts what one socket could not read, deliver or allow, and tells whoever keeps the metrics."""

    def __init__(
        self,
        clock: Clock,
        *,
        on_malformed: Callable[[], None] = _ignore,
        on_undeliverable: Callable[[], None] = _ignore,
        on_refused: Callable[[], None] = _ignore,
    ) -> None:
        self.malformed = 0
        self.undeliverable = 0
        self.refused = 0
        self._on_malformed = on_malformed
        self._on_undeliverable = on_undeliverable
        self._on_refused = on_refused
        self._malformed_log = LimitedLog(_log, clock)
        self._undeliverable_log = LimitedLog(_log, clock)
        self._refused_log = LimitedLog(_log, clock)

    def count_malformed(self, peer: str, reason: object) -> None:
        """A message from `peer` was dropped because it cannot be read."""
        self.malformed += 1
        self._on_malformed()
        self._malformed_log.warning("dropped a malformed message from %s: %s", peer, reason)

    def count_undeliverable(self, peer: str, message: object) -> None:
        """A message to `peer` was dropped because the peer is gone or its queue is full."""
        self.undeliverable += 1
        self._on_undeliverable()
        self._undeliverable_log.warning(
            "dropped a %s for %s: it is not connected, or its queue is full", type(message).__name__, peer
        )

    def count_refused(self, peer: str, reason: str) -> None:
        """A connection or a message of `peer` was refused for its key."""
        self.refused += 1
        self._on_refused()
        self._refused_log.warning("refused %s: %s", peer, reason)
