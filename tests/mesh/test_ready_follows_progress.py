"""/ready is 200 while a pair of instances really answers: not where they are members and give no token."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from common.config.types import InstanceConfig, MeshConfig
from common.ids import InstanceId
from services.engine.runner import Runner
from services.gateway.mesh.shell import TICK_S
from tests.mesh.inprocess import InProcessMesh, deterministic, in_process_mesh, mesh_config

P0, D0, D1 = InstanceId("p0"), InstanceId("d0"), InstanceId("d1")
SILENCE_S = 0.2


class Gates:
    """Engines that stand still when told to. Their instances take jobs and send heartbeats all the same."""

    def __init__(self) -> None:
        self._open: dict[InstanceId, threading.Event] = {}

    def build(self, instance: InstanceConfig) -> Runner:
        gate = self._open.setdefault(instance.id, threading.Event())
        gate.set()
        return deterministic(instance, gate=lambda: gate.wait(30) and None)

    def stop(self, name: InstanceId) -> None:
        self._open[name].clear()

    def go_on(self) -> None:
        for gate in self._open.values():
            gate.set()


@asynccontextmanager
async def gated(folder: Path, config: MeshConfig) -> AsyncIterator[tuple[InProcessMesh, Gates]]:
    gates = Gates()
    async with in_process_mesh(config, folder, build=gates.build) as mesh:
        try:
            yield mesh, gates
        finally:
            gates.go_on()


async def ready(mesh: InProcessMesh) -> tuple[int, str]:
    async with mesh.client.get("/ready") as response:
        return response.status, (await response.json()).get("reason", "")


async def until(mesh: InProcessMesh, condition: Callable[[tuple[int, str]], bool]) -> str:
    async with asyncio.timeout(10):
        while not condition(found := await ready(mesh)):  # noqa: ASYNC110 - over HTTP, which has no event
            await asyncio.sleep(0.02)
    return found[1]


def steps(mesh: InProcessMesh) -> dict[str, int]:
    return {name: load.steps for name, load in mesh.loads().items()}


async def test_work_that_stands_still_turns_ready_off_and_a_token_turns_it_on(deterministic_folder: Path) -> None:
    async with gated(deterministic_folder, mesh_config(silence_s=SILENCE_S)) as (mesh, gates):
        for stuck in (D0, P0):
            assert await ready(mesh) == (200, "")
            gates.stop(stuck)
            answer = asyncio.ensure_future(mesh.complete("hello there", max_tokens=4))
            reason = await until(mesh, lambda found: found[0] == 503)
            assert "p0 → d0 has 1 requests, gave no token for" in reason
            gates.go_on()
            await until(mesh, lambda found: found[0] == 200)
            assert (await answer).status == 200


async def test_a_new_life_counts_when_it_has_answered(deterministic_folder: Path) -> None:
    async with gated(deterministic_folder, mesh_config(silence_s=SILENCE_S)) as (mesh, gates):
        await mesh.crash_worker(D0)
        await mesh.start_worker(D0)
        gates.stop(D0)
        await until(mesh, lambda found: "p0 → d0 has not answered its first request yet" in found[1])
        gates.go_on()
        await until(mesh, lambda found: found[0] == 200)


async def test_one_pair_that_answers_is_enough_to_be_ready(deterministic_folder: Path) -> None:
    async with gated(deterministic_folder, mesh_config(decode=2, silence_s=SILENCE_S)) as (mesh, gates):
        gates.stop(D1)
        answers = [asyncio.ensure_future(mesh.complete(f"hello {i}", max_tokens=4)) for i in range(2)]
        for _ in range(10):
            assert await ready(mesh) == (200, "")
            await asyncio.sleep(0.06)
        gates.go_on()
        assert [(await answer).status for answer in answers] == [200, 200]


async def test_an_idle_mesh_is_left_alone(deterministic_folder: Path) -> None:
    config = mesh_config(prefill=2, decode=2, silence_s=0.1)
    async with gated(deterministic_folder, config) as (mesh, _):
        known = mesh.gateway.mesh._canaries._proofs._standings
        await mesh.until(lambda: [pair.answers for pair in known.values()] == [True] * 4)
        await mesh.until_nothing_is_held()
        before = steps(mesh)
        await asyncio.sleep(0.5)
        assert steps(mesh) == before
        async with mesh.client.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        outcomes = [line for line in lines if line.startswith("pdmesh_requests_total") and not line.endswith(" 0.0")]
        assert outcomes == [], "no request of a client has ended"


async def test_a_mesh_of_decode_instances_alone_is_proved_too(deterministic_folder: Path) -> None:
    config = msgspec.structs.replace(mesh_config(prefill=0, silence_s=SILENCE_S), split=0)
    async with gated(deterministic_folder, config) as (mesh, gates):
        assert await ready(mesh) == (200, "")
        gates.stop(D0)
        answer = asyncio.ensure_future(mesh.complete("hello", max_tokens=4))
        assert "d0 has 1 requests" in await until(mesh, lambda found: found[0] == 503)
        gates.go_on()
        await until(mesh, lambda found: found[0] == 200)
        assert (await answer).status == 200


async def test_a_stop_drops_no_question_as_unanswered(
    deterministic_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gated(deterministic_folder, mesh_config(silence_s=1.0)) as (mesh, gates):
        shell = mesh.gateway.mesh
        await mesh.until(lambda: not shell._canaries._asked)
        gates.stop(D0)
        answer = asyncio.ensure_future(mesh.complete("hello there", max_tokens=4))
        await mesh.until(lambda: bool(shell._canaries._asked))
        shell.shut_down()
        await asyncio.sleep(3 * TICK_S)
        gates.go_on()
        assert (await answer).status == 200
        assert "which is dropped" not in caplog.text
