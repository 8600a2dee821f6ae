"""A whole mesh in one process and one event loop: real HTTP, real bus, in-memory hand-off, any runner."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from common.clock import SystemClock
from common.config.types import GatewayConfig, InstanceConfig, MeshConfig, TransferConfig
from common.ids import InstanceId
from common.kv.layout import KVOrder
from common.messages.control import Load, Role
from common.tasks import TaskScope
from services.decode.service import DecodeService
from services.engine.runner import Runner
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from services.gateway.service import GatewayService
from services.prefill.service import PrefillService
from transfer.backends.base import Backend
from transfer.backends.inproc import InprocBackend

BuildRunner = Callable[[InstanceConfig], Runner]


def deterministic(instance: InstanceConfig, **faults: Any) -> Runner:
    layout = deterministic_layout(block_size=instance.block_size, order=instance.order, layers=4)
    return DeterministicRunner(layout, 256, vocab_size=258, **faults)


def mesh_config(prefill: int = 1, decode: int = 1, *, prefix_cache: bool = False, **gateway: Any) -> MeshConfig:
    """A config of small instances on free ports, with short deadlines. Most tests send one prompt again and again to
    see it computed or handed over anew, and want no prefix cache.
    """
    settings = {
        "http": "127.0.0.1:0",
        "control": "tcp://127.0.0.1:*",
        "allow_placement_override": True,
        "heartbeat_s": 0.05,
        "lease_s": 1.0,
        "deadline_s": 20.0,
        # Many tests count what the instances did.
        "silence_s": None,
    }
    common: dict[str, Any] = {"block_size": 4, "order": KVOrder.NHD, "budget": 64, "prefix_cache": prefix_cache}
    return MeshConfig(
        gateway=GatewayConfig(**(settings | gateway)),
        transfer=TransferConfig(segment_bytes=512, landing_zones=2, progress_timeout_s=0.5),
        instances=(
            *(InstanceConfig(id=InstanceId(f"p{i}"), role=Role.PREFILL, **common) for i in range(prefill)),
            *(InstanceConfig(id=InstanceId(f"d{i}"), role=Role.DECODE, **common) for i in range(decode)),
        ),
    )


class InProcessMesh:
    """Made by `in_process_mesh`. Workers can be stopped and started while it runs."""

    def __init__(self, config: MeshConfig, model_folder: Path, backend: Backend, build: BuildRunner) -> None:
        self.config = config
        self._folder = model_folder
        self._backend = backend
        self._build = build
        self._scope = TaskScope("test-mesh")
        self._stops: dict[InstanceId, asyncio.Event] = {}
        self._serving: dict[InstanceId, asyncio.Task[None]] = {}
        self.workers: dict[InstanceId, PrefillService | DecodeService] = {}

    async def start(self) -> None:
        self.gateway = GatewayService(self.config, self._folder, SystemClock())
        await self.gateway.start()
        settled = msgspec.structs.replace(self.config.gateway, control=self.gateway.control)
        self.config = msgspec.structs.replace(self.config, gateway=settled)
        for instance in self.config.instances:
            await self.start_worker(instance.id)
        self.client = aiohttp.ClientSession(self.gateway.url)
        await self.until(lambda: self.gateway.mesh.not_ready() is None)

    async def start_worker(self, name: InstanceId) -> None:
        (instance,) = [i for i in self.config.instances if i.id == name]
        kind = PrefillService if instance.role is Role.PREFILL else DecodeService
        folder = (self._folder,) if kind is DecodeService else ()
        worker = kind(self.config, instance, lambda: self._build(instance), [self._backend], SystemClock(), *folder)
        await worker.start()
        stop = self._stops[name] = asyncio.Event()
        self.workers[name] = worker
        self._serving[name] = self._scope.start(worker.serve(stop), name)

    async def crash_worker(self, name: InstanceId) -> None:
        """End a worker without a word to anybody, as far as one event loop can."""
        self._serving.pop(name).cancel()
        await asyncio.sleep(0)
        await self.workers.pop(name).close()

    async def stop_worker(self, name: InstanceId) -> None:
        """End a worker in order: it drains and leaves."""
        self._stops[name].set()
        await self._serving.pop(name)
        await self.workers.pop(name).close()

    async def close(self) -> None:
        await self.client.close()
        for name in list(self.workers):
            await self.stop_worker(name)
        await self.gateway.drain()
        await self.gateway.close()
        await self._scope.close()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - conditions of several services, none of which has an event
                await asyncio.sleep(0.005)

    def loads(self) -> dict[InstanceId, Load]:
        return {name: worker.jobs.load() for name, worker in self.workers.items()}

    def held(self) -> dict[str, Load]:
        """What every worker holds, without the counts that are not zero when idle."""
        return {
            name: msgspec.structs.replace(load, blocks_total=0, blocks_kept=0, steps=0, tokens=0, cost_factor=1.0)
            for name, load in self.loads().items()
        }

    async def until_nothing_is_held(self) -> None:
        """Promise 5: nothing is lost and nothing leaks. Fails with what is still held."""
        empty = dict.fromkeys(self.workers, Load())
        try:
            await self.until(lambda: self.held() == empty and self._gateway_is_empty(), 5.0)
        except TimeoutError:
            raise AssertionError(f"still held: {self.held()}, {self.gateway.mesh.holdings()}") from None
        for worker in self.workers.values():
            await worker.engine.check_integrity()

    async def until_all_are_members(self) -> None:
        """After this no request is placed on a life that is over."""
        members = [worker._worker._member for worker in self.workers.values()]
        await self.until(lambda: all(member.is_joined for member in members))

    def assert_serving(self) -> None:
        """Every worker that was neither crashed nor stopped still serves; raises what ended one."""
        for name, task in self._serving.items():
            assert not task.done(), f"{name} serves no more: {task.exception()!r}"

    def _gateway_is_empty(self) -> bool:
        holdings = self.gateway.mesh.holdings()
        return (holdings.requests, holdings.queued, holdings.slots) == (0, 0, 0)

    async def complete(self, prompt: str, **parameters: Any) -> "Answer":
        """POST /v1/completions, not streaming."""
        body = {"model": self.config.model, "prompt": prompt, "temperature": 0, "max_tokens": 16} | parameters
        async with self.client.post("/v1/completions", json=body) as response:
            return Answer(response.status, response.headers.get("x-pdmesh-placement"), await response.json())


class Answer(msgspec.Struct, frozen=True):
    status: int
    placement: str | None
    body: dict[str, Any]

    @property
    def text(self) -> str:
        assert self.status == 200, self.body
        return str(self.body["choices"][0]["text"])


@asynccontextmanager
async def in_process_mesh(
    config: MeshConfig,
    model_folder: Path,
    *,
    backend: Backend | None = None,
    build: BuildRunner = deterministic,
) -> AsyncIterator[InProcessMesh]:
    """A running mesh; after the test, everything that it held must have come back and every task must have ended."""
    before = asyncio.all_tasks()
    mesh = InProcessMesh(config, model_folder, backend or InprocBackend(), build)
    await mesh.start()
    try:
        yield mesh
        await mesh.until_nothing_is_held()
    finally:
        await mesh.close()
    leaked = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert not leaked, f"tasks left behind: {leaked}"
