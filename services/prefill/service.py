"""One prefill instance, put together; `run_prefill` is the composition root of its process."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from common.bus.keys import key_reader
from common.clock import Clock, SystemClock
from common.config.types import InstanceConfig, MeshConfig
from common.faults import Faults
from common.ids import Generation
from common.lasting_objects import keep_what_is_there
from common.messages.control import Register, Role
from common.signals import stop_on_signals
from services.engine.build import build_instance_runner, prefill_limits, prepare_process
from services.engine.measuring.costs import costs_at_start
from services.engine.measuring.facts import device_facts
from services.engine.runner import Runner
from services.engine.thread import EngineThread
from services.engine.worker import Worker
from services.prefill.jobs import PrefillJobs
from transfer.backends.base import Backend
from transfer.backends.registry import build_backends, installed_backends
from transfer.limits import TransferLimits
from transfer.memory import PagedMemory
from transfer.source import KVSource


class PrefillService:
    """An engine, a source that serves what it computed, and a membership. Use: start, serve, close."""

    def __init__(
        self,
        config: MeshConfig,
        instance: InstanceConfig,
        build: Callable[[], Runner],
        backends: Sequence[Backend],
        clock: Clock,
    ) -> None:
        self._config = config
        self._instance = instance
        self._backends = backends
        self._clock = clock
        self._limits = prefill_limits(instance)
        self.engine = EngineThread(
            build,
            self._limits,
            lambda event: self.jobs.on_event(event),
            clock,
            slowdown=instance.emulate.slowdown,
            prefix_cache=instance.prefix_cache,
        )

    async def start(self) -> None:
        """Load the model, know its costs and open the data port. Raises ModelError or ConfigError."""
        runner = self._runner = await self.engine.start()
        self._costs = await costs_at_start(self._instance, self._limits, self.engine, runner)
        memory = PagedMemory.apart(runner.layout, runner.kv.keys, runner.kv.values)
        limits = TransferLimits.of(self._config.transfer)
        self.source = KVSource(memory, Generation(0), limits, self._clock, self._backends)
        self._endpoints = await self.source.start()
        self.jobs = PrefillJobs(
            self._instance.id,
            self.engine,
            self.source,
            lambda message: self._worker.send(message),
            self._clock,
            Faults(self._instance.id, self._instance.emulate.fault_file),
        )
        self._worker = Worker(
            self.jobs,
            self._describe,
            self._config.gateway.control,
            lambda: Generation(secrets.randbits(63)),
            self._clock,
            keys=key_reader(self._config.gateway.control_keys, self._instance.id),
        )

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; see Worker.serve."""
        await self._worker.serve(stop, self.engine.failed)

    async def close(self) -> None:
        """End every task, the source and the engine."""
        await self.jobs.close()
        await self.source.close()
        await self.engine.stop()

    def _describe(self, generation: Generation) -> Register:
        return Register(
            instance=self._instance.id,
            role=Role.PREFILL,
            generation=generation,
            endpoints=self._endpoints,
            layout=self._runner.layout,
            context_length=self._runner.context_length,
            kv_capacity_tokens=self._runner.num_blocks * self._runner.layout.block_size,
            max_batch=self._instance.max_batch,
            budget=self._instance.prefill_chunk,
            costs=self._costs,
            device=device_facts(self._instance, self._runner.layout),
        )


async def run_prefill(config: MeshConfig, instance: InstanceConfig, model_folder: Path) -> bool:
    """Serve as `instance` until SIGTERM or SIGINT, then drain; whether it was SIGINT."""
    stop = stop_on_signals()
    prepare_process(instance)
    service = PrefillService(
        config,
        instance,
        lambda: build_instance_runner(instance, config.dtype, model_folder),
        build_backends(config.transfer, installed_backends()),
        SystemClock(),
    )
    await service.start()
    keep_what_is_there()
    try:
        await service.serve(stop)
    finally:
        await service.close()
    return stop.was_interrupt
