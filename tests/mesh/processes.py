"""A mesh of real processes, for tests: started by the launcher, talked to over HTTP, seen through its metrics."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil

from common.clock import SystemClock
from common.config.types import GatewayConfig, MeshConfig
from services.launch.local import LaunchOptions, LocalMesh

_ZERO_WHEN_IDLE = ("waiting", "running", "queued_tokens", "context_tokens", "blocks_used", "tickets", "staging_bytes")


class Processes:
    """A running mesh and a client of it."""

    def __init__(self, local: LocalMesh, client: aiohttp.ClientSession) -> None:
        self.local = local
        self.client = client

    @property
    def url(self) -> str:
        return self.local.url

    def pid(self, name: str) -> int:
        return self.local.pid(name)

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics: name with labels → value."""
        async with self.client.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    async def metric(self, name: str) -> float:
        return (await self.metrics())[name]

    async def until_nothing_is_held(self, timeout_s: float = 15.0) -> None:
        """Promise 5, seen from outside: every instance reports zero, the gateway holds no request."""
        held: dict[str, float] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    # The loads come with heartbeats: what is shown may be as old as one.
                    await asyncio.sleep(2 * self.local.config.gateway.heartbeat_s)
                    held = {name: value for name, value in (await self.metrics()).items() if value and _counts(name)}
                    if not held:
                        return
        except TimeoutError:
            raise AssertionError(f"still held: {held}") from None


def _counts(name: str) -> bool:
    if name in ("pdmesh_requests_queued", "pdmesh_requests_running"):
        return True
    field = re.fullmatch(r"pdmesh_instance_(\w+)\{.*\}", name)
    return field is not None and (field[1] in _ZERO_WHEN_IDLE or field[1] == "tasks")


@asynccontextmanager
async def processes(
    model_folder: Path, config: MeshConfig | None = None, *, prefix_cache: bool = False, **gateway: Any
) -> AsyncIterator[Processes]:
    """Start a mesh on free ports; after the test nothing is held in it, and then no process of it is left.

    Most tests send a prompt again to see it handed over anew, and want no prefix cache.
    """
    # Many tests count what the instances did, or have them die at the first thing that they do.
    quiet = {"allow_placement_override": True, "silence_s": None}
    settings = {"http": "127.0.0.1:0", "control": "tcp://127.0.0.1:0", **quiet}
    config = msgspec.structs.replace(config or MeshConfig(), gateway=GatewayConfig(**(settings | gateway)))
    instances = [msgspec.structs.replace(one, prefix_cache=prefix_cache) for one in config.instances]
    config = msgspec.structs.replace(config, instances=tuple(instances))
    options = LaunchOptions(model_folder=model_folder)
    async with LocalMesh(config, environ=os.environ, clock=SystemClock(), options=options) as local:
        async with aiohttp.ClientSession(local.url) as client:
            mesh = Processes(local, client)
            yield mesh
            await mesh.until_nothing_is_held()
        pids = [local.pid(name) for name in local.names()]
    left = [pid for pid in pids if psutil.pid_exists(pid)]
    assert not left, f"processes left behind: {left}"
