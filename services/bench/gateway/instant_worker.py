"""`python -m services.bench.gateway.instant_worker ROLE …`: a process of a mesh whose instances answer at once.

It takes the arguments of `pdmesh gateway`, `prefill` and `decode`, so that LocalMesh can start it in their place. As
the gateway it is the real one. As an instance it is a member like the real ones, by the same bus and the same messages,
but nothing is computed and no KV moves: what is left to measure is the gateway.
"""

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from common.bus.client import BusClient
from common.bus.codecs import from_worker_codec, to_worker_codec
from common.bus.drops import Drops
from common.bus.keys import KeyReader, key_reader
from common.bus.member import MembershipClient, Registration
from common.clock import Clock, SystemClock
from common.config.load import load_mesh
from common.config.types import GatewayConfig, InstanceConfig
from common.ids import Generation
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.logs import configure_logs
from common.messages.control import Load, Register, Role, ToWorker
from common.signals import stop_on_signals
from common.tasks import TaskScope
from services.bench.gateway.instant_jobs import InstantDecode, InstantPrefill
from services.launch.commands import GATEWAY, PROGRAM
from services.launch.lifeline import end_with_parent

_LAYOUT = KVLayout("instant", KVDType.FLOAT32, 16, KVOrder.NHD, Interval(0, 1), Interval(0, 1), 4)
_CONTEXT = 8192
_KV_TOKENS = 1 << 24
"""Enough for any load: what room there is must not be what is measured."""


class InstantWorker:
    """An instance in the mesh whose gateway listens at `control`."""

    def __init__(self, instance: InstanceConfig, control: str, keys: KeyReader, clock: Clock) -> None:
        self._config = instance
        self._jobs = (InstantPrefill if instance.role is Role.PREFILL else InstantDecode)(instance.id)
        self._is_stepping = False
        self._member = MembershipClient(
            lambda: BusClient(control, to_worker_codec(), from_worker_codec(), drops=Drops(clock), keys=keys()),
            Registration(
                draw_generation=lambda: Generation(secrets.randbits(63)),
                register=self._describe,
                load=Load,
                on_message=self._hear,
                on_lost=self._lost,
            ),
            clock,
        )

    async def serve(self, stop: asyncio.Event) -> None:
        """Be a member until `stop` is set."""
        tasks = TaskScope("instant")
        member = tasks.start(self._member.run(), "member")
        stopped = tasks.start(stop.wait(), "stop")
        try:
            await asyncio.wait([member, stopped], return_when=asyncio.FIRST_COMPLETED)
            await self._member.leave()
        finally:
            await tasks.close()

    def _hear(self, message: ToWorker) -> None:
        for answer in self._jobs.answers(message, self._generation()):
            self._member.send(answer)
        if not self._is_stepping:
            self._step()

    def _step(self) -> None:
        """One step, and the next when the loop has looked for messages."""
        step = self._jobs.step(self._generation())
        self._is_stepping = step is not None
        if step is not None:
            self._member.send(step)
            asyncio.get_running_loop().call_soon(self._step)

    def _generation(self) -> Generation:
        generation = self._member.generation
        assert generation is not None, "nothing is heard before a generation was drawn"
        return generation

    async def _lost(self, _: str) -> None:
        self._jobs.forget()

    def _describe(self, generation: Generation) -> Register:
        is_prefill = self._config.role is Role.PREFILL
        return Register(
            instance=self._config.id,
            role=self._config.role,
            generation=generation,
            endpoints=("tcp://127.0.0.1:9",) if is_prefill else (),
            layout=_LAYOUT,
            context_length=_CONTEXT,
            kv_capacity_tokens=_KV_TOKENS,
            max_batch=self._config.max_batch,
        )


async def _run(instance: InstanceConfig, gateway: GatewayConfig) -> None:
    stop = stop_on_signals()
    keys = key_reader(gateway.control_keys, instance.id)
    await InstantWorker(instance, gateway.control, keys, SystemClock()).serve(stop)


def main(arguments: Sequence[str]) -> None:
    """Be the gateway or an instance, as the arguments say."""
    if arguments[0] == GATEWAY:
        os.execv(PROGRAM[0], [*PROGRAM, *arguments])
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=[role.value for role in Role])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model-folder")
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--instance")
    flags = parser.parse_args(arguments)
    end_with_parent(flags.parent_fd)
    mesh = load_mesh(flags.config, {}, {})
    instance = next(one for one in mesh.instances if one.id == flags.instance)
    configure_logs(instance.id, mesh.log_level, sys.stderr)
    uvloop.run(_run(instance, mesh.gateway))


if __name__ == "__main__":
    main(sys.argv[1:])
