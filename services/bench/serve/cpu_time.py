"""How much of a core a process has had."""

import psutil


def cpu_seconds(pid: int) -> float:
    """User and system time of the process `pid` and all its threads, since it began; not of its children."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
