"""Logs: one line each on stderr, with the instance's name; and one trace helper with three words."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

from common.clock import Clock
from common.ids import RequestId


class LineFormatter(logging.Formatter):
    """`TIME LEVEL INSTANCE LOGGER MESSAGE`, always a single line: newlines and tracebacks are folded into ` ⏎ `."""

    def __init__(self, instance: str) -> None:
        super().__init__("%(asctime)s %(levelname)s " + instance + " %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        """UTC with milliseconds, so that lines of several machines sort together."""
        return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        return " ⏎ ".join(super().format(record).splitlines())


def configure_logs(instance: str, level: str, stream: TextIO) -> None:
    """Send the process's logs of `level` ("debug" … "error") and above to `stream`. For composition roots only."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(instance))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


@contextmanager
def traced(
    logger: logging.Logger, clock: Clock, operation: str, request: RequestId, **fields: object
) -> Iterator[None]:
    """Log `operation` of `request` as started, then complete or failed, with `fields` and the seconds it took."""
    start_s = clock.now()
    about = " ".join([f"request={request}", *(f"{name}={value}" for name, value in fields.items())])
    logger.debug("%s started %s", operation, about)
    try:
        yield
    except BaseException as error:
        logger.warning("%s failed %s seconds=%.6f error=%r", operation, about, clock.now() - start_s, error)
        raise
    logger.debug("%s complete %s seconds=%.6f", operation, about, clock.now() - start_s)


class LimitedLog:
    """Warnings that a peer can provoke at will: one per interval, which says how many were left out."""

    def __init__(self, logger: logging.Logger, clock: Clock, interval_s: float = 5.0) -> None:
        self._logger = logger
        self._clock = clock
        self._interval_s = interval_s
        self._next_s = clock.now()
        self._left_out = 0

    def warning(self, message: str, *args: object) -> None:
        """Log `message`, unless one was logged within the interval; then count it for the next."""
        if self._clock.now() < self._next_s:
            self._left_out += 1
            return
        suffix = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._logger.warning("%s%s", message % args, suffix)
        self._next_s = self._clock.now() + self._interval_s
        self._left_out = 0
