"""The whole benchmark: a mesh, its stages and one engine started side by side, and measured in turn."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import assert_never

import msgspec
import psutil

from common.clock import Clock
from common.messages.control import Role
from services.bench.engine.errors import BenchError
from services.bench.load.stream import LoadRequest, StreamTimes
from services.bench.loop_lag import read_loop_lag
from services.bench.repeats import OnStep, interleave
from services.bench.serve.clients import ask_in_turn
from services.bench.serve.cpu_time import cpu_seconds
from services.bench.serve.figures import Limits, latencies, steady_rate, within
from services.bench.serve.parts import read_parts
from services.bench.serve.settings import D, P, ServeSettings
from services.bench.serve.stage import StageProcess, StageRun
from services.bench.serve.trials import TRIALS, Part, Trial, prompts_of
from services.launch.local import LaunchOptions, LocalMesh

Figures = Mapping[str, float]
"""Of one run, by column."""


class ServeRun(msgspec.Struct, frozen=True):
    """What is run."""

    settings: ServeSettings
    model_folder: Path
    vocab_size: int
    rounds: int


class _Systems(msgspec.Struct, frozen=True):
    mesh: LocalMesh
    prefill: StageProcess
    decode: StageProcess
    engine: StageProcess


async def run_serve(
    run: ServeRun, environ: Mapping[str, str], clock: Clock, on_step: OnStep
) -> dict[Trial, tuple[Figures, ...]]:
    """The figures of every trial, one for each round. Raises PdmeshError.

    All stay up from begin to end. While the mesh is not measured it costs its heartbeats; the others cost nothing.
    """
    async with AsyncExitStack() as stack:
        systems = await _started(run, environ, clock, stack, on_step)
        runner = _Runner(run, systems, clock)
        return await interleave({trial: partial(runner.once, trial) for trial in TRIALS}, run.rounds, on_step)


async def _started(
    run: ServeRun, environ: Mapping[str, str], clock: Clock, stack: AsyncExitStack, on_step: OnStep
) -> _Systems:
    settings = run.settings

    async def stage(name: str, role: Role) -> StageProcess:
        on_step(f"starting {name}")
        instance = settings.engine() if name == Part.ENGINE else settings.instance(role)
        return await StageProcess.start(instance, settings.dtype, run.model_folder, environ, stack)

    on_step("starting the mesh")
    options = LaunchOptions(model_folder=run.model_folder)
    mesh = await stack.enter_async_context(LocalMesh(settings.mesh(), environ=environ, clock=clock, options=options))
    return _Systems(
        mesh,
        await stage(Part.PREFILL, Role.PREFILL),
        await stage(Part.DECODE, Role.DECODE),
        await stage(Part.ENGINE, Role.DECODE),
    )


class _Runner:
    def __init__(self, run: ServeRun, systems: _Systems, clock: Clock) -> None:
        self._run = run
        self._settings = run.settings
        self._systems = systems
        self._clock = clock
        self._runs: Counter[Trial] = Counter()

    async def once(self, trial: Trial) -> Figures:
        requests = prompts_of(self._settings, self._run.vocab_size, trial, self._runs[trial])
        self._runs[trial] += 1
        systems = self._systems
        match trial.part:
            case Part.MESH:
                return await self._mesh(trial, requests)
            case Part.LONE:
                seen = latencies(await self._asked(trial, requests, clients=1))
                return seen | await read_parts(systems.mesh.url, len(requests))
            case Part.PREFILL:
                return self._stage_figures(await self._stage(systems.prefill, trial, requests))
            case Part.DECODE:
                return self._stage_figures(await self._stage(systems.decode, trial, requests))
            case Part.ENGINE:
                return self._stage_figures(await self._stage(systems.engine, trial, requests))
            case Part.TOGETHER:
                return await self._together(trial, requests)
            case _:
                assert_never(trial.part)

    async def _mesh(self, trial: Trial, requests: Sequence[LoadRequest]) -> Figures:
        settings = self._settings
        before = self._cpu_seconds()
        answers = await self._asked(trial, requests, settings.clients)
        after = self._cpu_seconds()
        lags = await read_loop_lag(self._systems.mesh.url)
        began = min(answer.asked_at for answer in answers)
        ended_at = sorted(answer.last_at - began for answer in answers)
        share = within(answers, Limits(settings.slo_ttft_s, settings.slo_tpot_s))
        rate = steady_rate(ended_at, settings.clients)
        return {
            "requests_per_s": rate,
            "whole_requests_per_s": len(answers) / ended_at[-1],
            "goodput_rps": share * rate,
            **latencies(answers),
            **{f"{name}_cpu_ms": 1e3 * (after[name] - before[name]) / len(answers) for name in after},
            **{f"{name}_lag_p99_ms": 1e3 * lag.p99_s for name, lag in lags.items()},
            **{f"{name}_lag_max_ms": 1e3 * lag.max_s for name, lag in lags.items()},
        }

    async def _together(self, trial: Trial, requests: Sequence[LoadRequest]) -> Figures:
        systems = self._systems
        prefill, decode = await asyncio.gather(
            self._stage(systems.prefill, trial, requests), self._stage(systems.decode, trial, requests)
        )
        return {
            "requests_per_s": min(steady_rate(run.ended_at, self._settings.clients) for run in (prefill, decode)),
            f"{P}_cpu_ms": _cpu_ms(prefill),
            f"{D}_cpu_ms": _cpu_ms(decode),
        }

    async def _asked(self, trial: Trial, requests: Sequence[LoadRequest], clients: int) -> list[StreamTimes]:
        mesh = self._systems.mesh
        answers = await ask_in_turn(mesh.url, mesh.config.model, requests, clients, self._clock)
        expected = f"split={trial.split.tokens(self._settings.prompt_tokens)};"
        for answer in answers:
            if expected not in answer.placement:
                raise BenchError(f"a request of {trial} was placed as {answer.placement!r}, without {expected!r}")
        return answers

    async def _stage(self, stage: StageProcess, trial: Trial, requests: Sequence[LoadRequest]) -> StageRun:
        split = trial.split.tokens(self._settings.prompt_tokens)
        return await stage.run(requests, split, self._settings.clients)

    def _stage_figures(self, run: StageRun) -> Figures:
        return {
            "requests_per_s": steady_rate(run.ended_at, self._settings.clients),
            "whole_requests_per_s": len(run.ended_at) / run.ended_at[-1],
            "cpu_ms": _cpu_ms(run),
        }

    def _cpu_seconds(self) -> dict[str, float]:
        """Of every process of the mesh, and of this one, which is the clients."""
        mesh = self._systems.mesh
        return {name: cpu_seconds(mesh.pid(name)) for name in mesh.names()} | {
            "clients": cpu_seconds(psutil.Process().pid)
        }


def _cpu_ms(run: StageRun) -> float:
    """Of each request."""
    return 1e3 * run.cpu_s / len(run.ended_at)
