"""What this machine offers: cores that this process may use, and how instances share them."""

import os
import platform
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from common.config.types import InstanceConfig
from common.errors import ConfigError

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux tells a container its share of the cores: "QUOTA PERIOD" in microseconds, or "max PERIOD"."""


CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux describes each core."""


def cpu_name(cpu_info: Path = CPU_INFO) -> str:
    """The processor's name in words, as far as the system tells."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def available_cores() -> tuple[int, ...]:
    """The cores this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable_core_count(quota_file: Path = CGROUP_QUOTA) -> int:
    """How many cores' worth of time this process can get: its cores, or a container's quota where that is less."""
    cores = len(available_cores())
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, ceil(int(quota) / int(period))))


def pin_to(cores: Sequence[int]) -> None:
    """Keep this process on `cores`; does nothing on systems that cannot. Raises ConfigError for a core not there."""
    if not hasattr(os, "sched_setaffinity"):
        return
    try:
        os.sched_setaffinity(0, cores)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cpu_affinity is {list(cores)!r}, but this process may use the cores {list(available_cores())}: {error}"
        ) from error


def share_cores(num_cores: int, num_instances: int) -> tuple[int, ...]:
    """Threads for each instance: all cores, as evenly as they go, and at least one each."""
    whole, rest = divmod(num_cores, max(1, num_instances))
    return tuple(max(1, whole + (index < rest)) for index in range(num_instances))


def threads_for(instance: InstanceConfig, instances: Sequence[InstanceConfig], num_cores: int) -> int:
    """Threads of one of the `instances` of this machine: as configured, else one per pinned core, else its share."""
    if instance.threads is not None:
        return instance.threads
    if instance.cpu_affinity is not None:
        return len(instance.cpu_affinity)
    index = [other.id for other in instances].index(instance.id)
    return share_cores(num_cores, len(instances))[index]
