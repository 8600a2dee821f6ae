"""`python -m services.engine.measuring.stage_trial`: one stage of a mesh by itself, without the mesh.

For measurements from outside, beside which a mesh is measured. A prefill instance computes the KV of prompts and throws
it away; a decode instance is told that the KV of a prompt's first tokens has landed, though nobody sent it. A closed
loop: so many clients, of whom each has its next request computed as soon as its last one has ended.

One line of JSON on stdin is a trial (`StageTrial`), one on stdout answers it (`StageAnswer`). The first line out is the
engine's name and version.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_never

import msgspec
import torch
import uvloop

from common.clock import Clock, SystemClock
from common.config.types import DType, InstanceConfig
from common.errors import Failure, PdmeshError
from common.hardware import pin_to
from common.ids import RequestId
from common.messages.control import Role
from common.messages.sampling import SamplingParams
from services.engine.api import (
    BlocksReserved,
    ComputingBegan,
    DecodeJob,
    EngineEvent,
    Job,
    JobEnded,
    LayerReady,
    PrefillComputed,
    PrefillFailed,
    PrefillJob,
    PrefixesChanged,
    PrefixFound,
    TokensSampled,
)
from services.engine.build import build_instance_runner, decode_limits, prefill_limits, prepare_process
from services.engine.thread import EngineThread


class StageTrial(msgspec.Struct, frozen=True):
    """What is asked: requests in the order in which they are taken."""

    prompts: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]
    """Tokens to generate for each; without meaning for a prefill instance."""
    splits: tuple[int, ...]
    """Of each prompt, the tokens that the prefill stage computes: less than all of them."""
    clients: int


class StageAnswer(msgspec.Struct, frozen=True):
    """What came of it. Seconds count from the first request."""

    tokens: int
    """Computed tokens of prompts at a prefill instance, generated ones at a decode instance."""
    ended_at: tuple[float, ...]
    """When each request had ended, in that order."""


class Stage:
    """An engine in one role that serves one trial after the other."""

    def __init__(self, instance: InstanceConfig, dtype: DType, folder: Path, clock: Clock) -> None:
        prepare_process(instance)
        self._role = instance.role
        self._clock = clock
        limits = prefill_limits(instance) if self._role is Role.PREFILL else decode_limits(instance)
        self._engine = EngineThread(
            lambda: build_instance_runner(instance, dtype, folder),
            limits,
            self._hear,
            clock,
            slowdown=instance.emulate.slowdown,
            prefix_cache=instance.prefix_cache,
        )
        self._jobs: Iterator[Job] = iter(())
        self._running: dict[RequestId, Job] = {}
        self._ended_at: list[float] = []
        self._tokens = 0
        self._idle = asyncio.Event()

    async def start(self) -> None:
        """Load the model. Raises ModelError or ConfigError."""
        await self._engine.start()

    async def stop(self) -> None:
        """End the engine's thread."""
        await self._engine.stop()

    async def run(self, trial: StageTrial) -> StageAnswer:
        """Serve the requests; at least one. Raises PdmeshError where one of them cannot be served."""
        self._jobs = iter(self._jobs_of(trial))
        self._ended_at, self._tokens = [], 0
        self._idle.clear()
        started = self._clock.now()
        for _ in range(trial.clients):
            self._next()
        idle = asyncio.ensure_future(self._idle.wait())
        waiters: set[asyncio.Future[Any]] = {idle, self._engine.failed}
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            idle.cancel()
            self._engine.failed.result()
        return StageAnswer(self._tokens, tuple(at - started for at in self._ended_at))

    def _jobs_of(self, trial: StageTrial) -> list[Job]:
        sampling = SamplingParams(temperature=0.0)
        jobs: list[Job] = []
        requests = zip(trial.prompts, trial.splits, trial.outputs, strict=True)
        for number, (prompt, split, output) in enumerate(requests):
            request = RequestId(f"r{number}")
            if self._role is Role.PREFILL:
                jobs.append(PrefillJob(request, prompt[:split]))
            else:
                jobs.append(DecodeJob(request, prompt, split, sampling, output))
        return jobs

    def _next(self) -> None:
        """One client takes the next request, if there is one."""
        if (job := next(self._jobs, None)) is not None:
            self._running[job.request] = job
            self._engine.submit(job)

    def _hear(self, event: EngineEvent) -> None:
        match event:
            case BlocksReserved(request):
                if self._role is Role.DECODE:
                    self._engine.kv_landed(request)
            case PrefillComputed(request):
                self._tokens += len(self._running[request].prompt)
                self._engine.end(request)
            case TokensSampled(items):
                self._tokens += sum(len(item.tokens) for item in items)
            case ComputingBegan() | LayerReady() | PrefixFound() | PrefixesChanged():
                pass
            case PrefillFailed(request, failure):
                raise _unserved(request, failure)
            case JobEnded(request, failure):
                self._ended(request, failure)
            case _:
                assert_never(event)

    def _ended(self, request: RequestId, failure: Failure | None) -> None:
        if failure is not None:
            raise _unserved(request, failure)
        self._ended_at.append(self._clock.now())
        del self._running[request]
        self._next()
        if not self._running:
            self._idle.set()


def _unserved(request: RequestId, failure: Failure) -> PdmeshError:
    return PdmeshError(f"the engine cannot serve {request}: {failure.message}")


async def serve(stage: Stage) -> None:
    """Answer every line of stdin, until it ends."""
    await stage.start()
    _say({"name": "pdmesh", "version": f"torch {torch.__version__}"})
    try:
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            _say(await stage.run(msgspec.json.decode(line, type=StageTrial)))
    finally:
        await stage.stop()


def _say(answer: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _main(arguments: argparse.Namespace) -> None:
    instance = msgspec.json.decode(arguments.instance, type=InstanceConfig)
    if instance.cpu_affinity is not None:
        pin_to(instance.cpu_affinity)

    async def main() -> None:
        await serve(Stage(instance, arguments.dtype, arguments.folder, SystemClock()))

    # The loop of the mesh's processes, so that what differs is the mesh.
    uvloop.run(main())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m services.engine.measuring.stage_trial")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instance", required=True, help="an entry of mesh.yaml's instances, as JSON")
    parser.add_argument("--dtype", default="bfloat16")
    _main(parser.parse_args())
