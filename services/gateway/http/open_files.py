"""How many connections the system lets this process hold."""

import logging
import resource
from typing import Final

_log = logging.getLogger(__name__)

RESERVED_FILES: Final = 128
"""For everything that is no client's connection: workers, logs, the model's files."""


def connections_within(wanted: int, files: int) -> int:
    """Connections that a process may hold which wants `wanted` and may open `files` files; at least 1."""
    return max(1, min(wanted, files - RESERVED_FILES))


def allow_connections(wanted: int) -> int:
    """Have the system allow the files of `wanted` connections, as far as it does; how many connections that makes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else connections_within(wanted, soft)
    if allowed < wanted:
        _log.warning(
            "%d connections at a time, not gateway.max_connections %d: the system allows %d files (ulimit -n)",
            allowed,
            wanted,
            soft,
        )
    return allowed
