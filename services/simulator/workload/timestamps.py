"""The times that traces write, as whole nanoseconds: a float would lose the digits of a date."""

import math
import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE_TIME = re.compile(
    r"(?P<whole>[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:\.(?P<fraction>[0-9]{1,9}))?"
    r"(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?"
)
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")


def date_time_ns(text: str) -> int:
    """Nanoseconds since 1970 of `2023-11-16 18:15:46.6805900`; up to nine digits, UTC unless it names its zone.

    Raises ValueError for anything else.
    """
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        raise ValueError("it does not look like 2023-11-16 18:15:46.6805900")
    moment = datetime.fromisoformat(match["whole"] + (match["zone"] or "Z"))
    return (moment - _EPOCH) // timedelta(seconds=1) * 10**9 + int((match["fraction"] or "").ljust(9, "0"))


def seconds_ns(text: str) -> int:
    """Nanoseconds of a number of seconds from 0, such as `4.314579`. Raises ValueError for anything else."""
    nanoseconds = float(text) * 1e9 if _SECONDS.fullmatch(text) else math.nan
    if not math.isfinite(nanoseconds):
        raise ValueError("it is not a number of seconds from 0")
    return round(nanoseconds)
