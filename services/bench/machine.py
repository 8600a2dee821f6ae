"""What a benchmark ran on."""

import platform

import msgspec
import psutil
import torch

from common.hardware import cpu_name, usable_core_count


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
        cpu=cpu_name(),
        cores=usable_core_count(),
        memory_bytes=psutil.virtual_memory().total,
        load=psutil.getloadavg()[0],
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
    )
