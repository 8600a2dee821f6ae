"""What a command came to, as an exit code; and errors as a person reads them."""

import sys
from enum import IntEnum

from common.errors import ConfigError, PdmeshError


class ExitCode(IntEnum):
    """The exit codes of `pdmesh`."""

    DONE = 0
    FAILED = 1
    BAD_USAGE = 2
    """Bad usage or configuration."""
    INTERRUPTED = 130


def report(error: PdmeshError) -> ExitCode:
    """Print `error` on stderr; the exit code that goes with it."""
    print(f"error: {error}", file=sys.stderr)
    return ExitCode.BAD_USAGE if isinstance(error, ConfigError) else ExitCode.FAILED
