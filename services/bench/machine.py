"""What a benchmark ran on."""

import platform
from pathlib import Path

import msgspec
import psutil
import torch

from common.hardware import usable_core_count


class Machine(msgspec.Struct, frozen=True):
    """Facts that explain figures."""

    cpu: str
    cores: int
    """Cores' worth of time that the process could get."""
    memory_bytes: int
    load: float
    """Processes that wanted to run during the minute before: well below 1 where nothing else disturbed."""
    gpu: str | None
    os: str
    python: str
    torch: str


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        cpu=_cpu_name(Path("/proc/cpuinfo")),
        cores=usable_core_count(),
        memory_bytes=psutil.virtual_memory().total,
        load=psutil.getloadavg()[0],
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
    )


def _cpu_name(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
