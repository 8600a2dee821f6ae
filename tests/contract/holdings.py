"""What a process holds, as the kernel sees it."""

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from transfer.testing import eventually


def zones_mapped() -> list[int]:
    """Inodes of the shared-memory zones that this process has mapped, once for each mapping."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [int(line.split()[4]) for line in lines if "memfd:pdmesh" in line]


def zones_open() -> list[str]:
    """Zones that this process has a descriptor of."""
    return [name for name in _open_files() if "memfd:pdmesh" in name]


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fails unless every descriptor, mapping and named piece of shared memory of the block is gone after it."""
    gc.collect()
    before = len(_open_files())
    yield
    gc.collect()
    await eventually(lambda: len(_open_files()) == before)
    assert zones_mapped() == []
    assert [name for name in os.listdir("/dev/shm") if "pdmesh" in name] == []


def _open_files() -> list[str]:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the descriptor with which the folder was listed
    return names
