"""One decode instance, put together; `run_decode` is the composition root of its process."""

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
from services.decode.grammars import Grammars
from services.decode.jobs import DecodeJobs
from services.engine.build import build_instance_runner, decode_limits, prepare_process
from services.engine.measuring.costs import costs_at_start
from services.engine.measuring.facts import device_facts
from services.engine.runner import Runner
from services.engine.thread import EngineThread
from services.engine.worker import Worker
from transfer.backends.base import Backend
from transfer.backends.registry import build_backends, installed_backends
from transfer.limits import TransferLimits
from transfer.memory import PagedMemory
from transfer.sink import KVSink


class DecodeService:
    """An engine, a sink that takes KV over, and a membership. Use: start, serve, close."""

    def __init__(
        self,
        config: MeshConfig,
        instance: InstanceConfig,
        build: Callable[[], Runner],
        backends: Sequence[Backend],
        clock: Clock,
        model_folder: Path | None = None,
    ) -> None:
        """Without the model's folder, which has its tokenizer, no answer can be kept within a grammar."""
        self._config = config
        self._instance = instance
        self._backends = backends
        self._clock = clock
        self._model_folder = model_folder
        self._grammars: Grammars | None = None
        self._limits = decode_limits(instance)
        self.engine = EngineThread(
            build,
            self._limits,
            lambda event: self.jobs.on_event(event),
            clock,
            slowdown=instance.emulate.slowdown,
            prefix_cache=instance.prefix_cache,
        )

    async def start(self) -> None:
        """Load the model, and know its costs. Raises ModelError or ConfigError."""
        runner = self._runner = await self.engine.start()
        self._costs = await costs_at_start(self._instance, self._limits, self.engine, runner)
        memory = PagedMemory.apart(runner.layout, runner.kv.keys, runner.kv.values)
        limits = TransferLimits.of(self._config.transfer)
        self.sink = KVSink(memory, Generation(0), limits, self._clock, self._backends)
        if self._model_folder is not None:
            self._grammars = Grammars(self._model_folder, runner.vocab_size)
        self.jobs = DecodeJobs(
            self._instance.id,
            self.engine,
            self.sink,
            lambda message: self._worker.send(message),
            self._clock,
            Faults(self._instance.id, self._instance.emulate.fault_file),
            self._grammars,
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
        """End every task, the sink and the engine."""
        await self.jobs.close()
        await self.sink.close()
        await self.engine.stop()
        if self._grammars is not None:
            self._grammars.close()

    def _describe(self, generation: Generation) -> Register:
        return Register(
            instance=self._instance.id,
            role=Role.DECODE,
            generation=generation,
            endpoints=(),
            layout=self._runner.layout,
            context_length=self._runner.context_length,
            kv_capacity_tokens=self._runner.num_blocks * self._runner.layout.block_size,
            max_batch=self._instance.max_batch,
            budget=self._instance.budget,
            costs=self._costs,
            weight=self._instance.weight,
            device=device_facts(self._instance, self._runner.layout),
        )


async def run_decode(config: MeshConfig, instance: InstanceConfig, model_folder: Path) -> bool:
    """Serve as `instance` until SIGTERM or SIGINT, then drain; whether it was SIGINT."""
    stop = stop_on_signals()
    prepare_process(instance)
    service = DecodeService(
        config,
        instance,
        lambda: build_instance_runner(instance, config.dtype, model_folder),
        build_backends(config.transfer, installed_backends()),
        SystemClock(),
        model_folder,
    )
    await service.start()
    keep_what_is_there()
    try:
        await service.serve(stop)
    finally:
        await service.close()
    return stop.was_interrupt
