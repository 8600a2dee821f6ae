"""Policies on two processes of this machine, one made slower: the same requests under each, in turn."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from common.clock import Clock
from common.config.types import MeshConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.tasks import TaskScope
from services.bench.load.stream import LoadRequest, StreamTimes
from services.bench.policies.mesh_runs import serve_load
from services.bench.policies.real import load_requests
from services.bench.repeats import OnStep, interleave
from services.bench.scheduling.pair_meshes import FAST, SLOW, PairSettings, pair_config
from services.bench.scheduling.pair_rates import Dealt, Rates, co_running, dealt
from services.bench.scheduling.simulated import POLICIES, ROUND_ROBIN
from services.launch.local import LaunchOptions, LocalMesh

_RATES: Final = "rates"
"""Beside the policies: both instances full at the same time, each with a load of its own."""


class PairRun(msgspec.Struct, frozen=True):
    """What is run at one slowdown."""

    settings: PairSettings
    slowdown: float
    policies: tuple[str, ...]
    """ROUND_ROBIN among them."""
    profiles: Mapping[InstanceId, Path]
    model_folder: Path
    vocab_size: int
    requests: int
    rounds: int

    def config(self, policy: str, names: Sequence[InstanceId] = (FAST, SLOW)) -> MeshConfig:
        """The mesh of a policy."""
        return pair_config(self.settings, policy, self.slowdown, self.profiles, names, queue=self.requests)


class PairServed(msgspec.Struct, frozen=True):
    """All rounds at one slowdown."""

    run: PairRun
    rates: tuple[Rates, ...]
    dealt: Mapping[str, tuple[Dealt, ...]]
    """By policy."""
    same_answers: Mapping[str, float]
    """By policy, the share of the answers of its first round that are those of round robin."""


class _Meshes(msgspec.Struct, frozen=True):
    of_policy: Mapping[str, LocalMesh]
    alone: tuple[LocalMesh, LocalMesh]
    """The fast instance by itself, and the slow one."""


def check_policies(policies: Sequence[str]) -> None:
    """Raise ConfigError where there is nothing to compare with, or a policy is unknown or named twice."""
    if unknown := [policy for policy in policies if policy not in POLICIES]:
        raise ConfigError(f"--policy has {', '.join(map(repr, unknown))}; choose among {', '.join(POLICIES)}")
    if ROUND_ROBIN not in policies:
        raise ConfigError(f"--policy is {','.join(policies)!r} without {ROUND_ROBIN}: every gain is over it; add it")
    if len(set(policies)) < len(policies):
        raise ConfigError(f"--policy is {','.join(policies)!r}: name each policy once")


async def run_pair(run: PairRun, environ: Mapping[str, str], clock: Clock, on_step: OnStep) -> PairServed:
    """Every policy and the rates, interleaved. Raises PdmeshError.

    All meshes stay up from begin to end: one that gets no requests costs its heartbeats.
    """
    check_policies(run.policies)
    requests = load_requests(run.settings.workload(run.requests), run.vocab_size)
    async with AsyncExitStack() as stack:
        meshes = await _started(run, stack, environ, clock, on_step)
        variants = {policy: partial(_of_policy, mesh, requests, clock) for policy, mesh in meshes.of_policy.items()} | {
            _RATES: partial(_of_both, meshes.alone, _shared_out(requests, run.slowdown), clock)
        }
        samples = await interleave(variants, run.rounds, lambda key: on_step(f"{run.slowdown:g} x: {key}"))
    texts = {policy: [answer.text for answer in samples[policy][0][0]] for policy in run.policies}
    return PairServed(
        run=run,
        rates=tuple(co_running(fast, slow) for fast, slow in samples[_RATES]),
        dealt={policy: tuple(dealt(answers) for (answers,) in samples[policy]) for policy in run.policies},
        same_answers={policy: _share_equal(mine, texts[ROUND_ROBIN]) for policy, mine in texts.items()},
    )


async def _started(
    run: PairRun, stack: AsyncExitStack, environ: Mapping[str, str], clock: Clock, on_step: OnStep
) -> _Meshes:
    async def start(name: str, config: MeshConfig) -> LocalMesh:
        on_step(f"{run.slowdown:g} x: starting {name}")
        options = LaunchOptions(model_folder=run.model_folder)
        return await stack.enter_async_context(LocalMesh(config, environ=environ, clock=clock, options=options))

    of_policy = {policy: await start(policy, run.config(policy)) for policy in run.policies}
    fast, slow = [await start(f"{name} alone", run.config("dp", (name,))) for name in (FAST, SLOW)]
    return _Meshes(of_policy, (fast, slow))


def _shared_out(requests: Sequence[LoadRequest], slowdown: float) -> tuple[Sequence[LoadRequest], ...]:
    """In proportion to what the instances should do, so that both are busy nearly to the end."""
    of_fast = round(len(requests) * slowdown / (1.0 + slowdown))
    return requests[:of_fast], requests[of_fast:]


async def _of_policy(mesh: LocalMesh, requests: Sequence[LoadRequest], clock: Clock) -> tuple[list[StreamTimes], ...]:
    return (await serve_load(mesh, requests, clock),)


async def _of_both(
    meshes: Sequence[LocalMesh], loads: Sequence[Sequence[LoadRequest]], clock: Clock
) -> tuple[list[StreamTimes], ...]:
    scope = TaskScope("rates")
    try:
        tasks = [
            scope.start(serve_load(mesh, load, clock), mesh.config.instances[0].id)
            for mesh, load in zip(meshes, loads, strict=True)
        ]
        return tuple([await task for task in tasks])
    finally:
        await scope.close()


def _share_equal(mine: Sequence[str], others: Sequence[str]) -> float:
    return sum(one == other for one, other in zip(mine, others, strict=True)) / len(mine)
