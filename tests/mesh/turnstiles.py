"""A mesh in one process of which the engines make a step only where the test lets them."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from common.config.types import InstanceConfig, MeshConfig
from common.messages.control import Role
from services.engine.runner import Runner
from tests.mesh.inprocess import InProcessMesh, deterministic, in_process_mesh
from transfer.backends.base import Backend

MANY = 10_000
"""More steps than any test needs."""


class Turnstile:
    """Lets a step of an engine begin for each permit."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)

    def let(self, steps: int) -> None:
        self._permits.release(steps)

    def wait(self) -> None:
        if not self._permits.acquire(timeout=30):
            raise RuntimeError("no permit for this step has come")


class Turnstiles:
    """Of all prefill instances together, and of all decode instances."""

    def __init__(self) -> None:
        self.prefill, self.decode = Turnstile(), Turnstile()

    def build(self, instance: InstanceConfig) -> Runner:
        return deterministic(instance, gate=(self.prefill if instance.role is Role.PREFILL else self.decode).wait)

    def open(self) -> None:
        self.prefill.let(MANY)
        self.decode.let(MANY)


@asynccontextmanager
async def stepwise(
    folder: Path, config: MeshConfig, backend: Backend | None = None
) -> AsyncIterator[tuple[InProcessMesh, Turnstiles]]:
    steps = Turnstiles()
    async with in_process_mesh(config, folder, backend=backend, build=steps.build) as mesh:
        try:
            yield mesh, steps
        finally:
            steps.open()
