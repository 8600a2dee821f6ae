"""When to start a crashed process again (pure)."""

FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 10.0
"""Bounds of the pause before a start; it doubles with each crash in a row."""
STEADY_S = 30.0
"""A process that ran for so long had recovered: its next crash is a first one."""


def crashes_in_a_row(before: int, ran_for_s: float) -> int:
    """The number of crashes in a row, this one included."""
    return 1 if ran_for_s >= STEADY_S else before + 1


def pause_s(crashes: int) -> float:
    """Seconds to wait before the start that follows `crashes` in a row (at least 1)."""
    return min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(crashes - 1, 16))
