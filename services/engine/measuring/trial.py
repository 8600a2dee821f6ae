"""`python -m services.engine.measuring.trial`: batches of requests served with an engine of its own, each timed.

For measurements from outside. One line of JSON on stdin is a trial, {"prompts": [[token, ...], ...], "outputs":
[tokens to generate, ...]}; one on stdout answers it, {"seconds": wall time from the first request to the last token,
"tokens": tokens generated}. All requests are there from the start. Nothing ends early. The first line out is the
engine's name and version.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import torch

from common.clock import Clock, SystemClock
from common.config.types import DType, InstanceConfig
from common.errors import PdmeshError
from common.ids import InstanceId, RequestId
from common.messages.control import Role
from common.messages.sampling import SamplingParams
from services.engine.api import DecodeJob, EngineEvent, JobEnded, TokensSampled
from services.engine.build import build_instance_runner, decode_limits, prepare_process
from services.engine.thread import EngineThread


class Trials:
    """An engine that serves one trial after the other."""

    def __init__(self, instance: InstanceConfig, dtype: DType, folder: Path, clock: Clock) -> None:
        prepare_process(instance)
        self._clock = clock
        self._tokens = 0
        self._running: set[RequestId] = set()
        self._idle = asyncio.Event()
        self._engine = EngineThread(
            lambda: build_instance_runner(instance, dtype, folder),
            decode_limits(instance),
            self._hear,
            clock,
            prefix_cache=instance.prefix_cache,
        )

    async def start(self) -> None:
        """Load the model. Raises ModelError or ConfigError."""
        await self._engine.start()

    async def stop(self) -> None:
        """End the engine's thread."""
        await self._engine.stop()

    async def run(self, prompts: list[list[int]], outputs: list[int]) -> dict[str, Any]:
        """Serve these requests; the answer of the trial. Raises PdmeshError where one of them cannot be served."""
        started = self._clock.now()
        self._tokens = 0
        self._idle.clear()
        jobs = [
            DecodeJob(RequestId(f"r{number}"), tuple(prompt), 0, SamplingParams(temperature=0.0), max_tokens)
            for number, (prompt, max_tokens) in enumerate(zip(prompts, outputs, strict=True))
        ]
        self._running = {job.request for job in jobs}
        for job in jobs:
            self._engine.submit(job)
        idle = asyncio.ensure_future(self._idle.wait())
        waiters: set[asyncio.Future[Any]] = {idle, self._engine.failed}
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            idle.cancel()
            self._engine.failed.result()
        return {"seconds": self._clock.now() - started, "tokens": self._tokens}

    def _hear(self, event: EngineEvent) -> None:
        if isinstance(event, TokensSampled):
            self._tokens += sum(len(item.tokens) for item in event.items)
        if isinstance(event, JobEnded):
            if event.failure is not None:
                raise PdmeshError(f"the engine cannot serve {event.request}: {event.failure.message}")
            self._running.discard(event.request)
            if not self._running:
                self._idle.set()


async def serve(trials: Trials) -> None:
    """Answer every line of stdin, until it ends."""
    await trials.start()
    print(json.dumps({"name": "pdmesh", "version": f"torch {torch.__version__}"}), flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            trial = json.loads(line)
            print(json.dumps(await trials.run(trial["prompts"], trial["outputs"])), flush=True)
    finally:
        await trials.stop()


async def _main(arguments: argparse.Namespace) -> None:
    instance = InstanceConfig(
        id=InstanceId("trial"),
        role=Role.DECODE,
        threads=arguments.threads,
        kv_memory="2GiB",
        max_batch=arguments.max_batch,
        budget=arguments.budget,
        prefix_cache=False,  # a prompt that is sent again is to take as long again
    )
    await serve(Trials(instance, arguments.dtype, arguments.folder, SystemClock()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m services.engine.measuring.trial")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--budget", type=int, default=512)
    asyncio.run(_main(parser.parse_args()))
