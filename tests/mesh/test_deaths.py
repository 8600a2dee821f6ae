"""Processes killed and stopped at named points of the protocol: typed errors in time, others go on, nothing leaks."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from common.config.types import EmulateConfig, MeshConfig, TransferConfig
from common.faults import FaultPoint, Faults
from common.ids import InstanceId
from tests.mesh.inprocess import mesh_config
from tests.mesh.processes import Processes, processes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

DEADLINE_S = 15.0
LEASE_S = 1.5
PROMPT = "a prompt that is long enough to need several segments on the wire, and then some"
QUICK = (
    (FaultPoint.PREFILL_FIRST_LAYER, "kill"),
    (FaultPoint.PREFILL_RESERVED, "stop"),
    (FaultPoint.DECODE_RESERVED, "kill"),
    (FaultPoint.DECODE_EIGHTH_TOKEN, "kill"),
    (FaultPoint.DECODE_LANDED, "stop"),
)
REST = tuple((point, action) for point in FaultPoint for action in ("kill", "stop") if (point, action) not in QUICK)


class Victims(msgspec.Struct, frozen=True):
    mesh: Processes
    fault_file: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def victims(deterministic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Victims]:
    fault_file = tmp_path_factory.mktemp("faults") / "fault"
    async with processes(
        deterministic_folder, config_of(fault_file), deadline_s=DEADLINE_S, heartbeat_s=0.2, lease_s=LEASE_S
    ) as mesh:
        for name in ("p0", "p1", "d0", "d1"):
            await until_joined(mesh, InstanceId(name), 1)
        yield Victims(mesh, fault_file)


def config_of(fault_file: Path) -> MeshConfig:
    base = mesh_config(prefill=2, decode=2)
    emulate = EmulateConfig(fault_file=str(fault_file))
    return msgspec.structs.replace(
        base,
        transfer=TransferConfig(segment_bytes=1024, landing_zones=2, progress_timeout_s=1.0),
        instances=tuple(msgspec.structs.replace(instance, emulate=emulate) for instance in base.instances),
    )


@pytest.mark.parametrize(("point", "action"), QUICK)
async def test_a_death_at(point: FaultPoint, action: str, victims: Victims) -> None:
    await die_and_recover(point, action, victims)


@pytest.mark.slow
@pytest.mark.parametrize(("point", "action"), REST)
async def test_a_death_at_every_other_point(point: FaultPoint, action: str, victims: Victims) -> None:
    await die_and_recover(point, action, victims)


@pytest.mark.parametrize("action", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_death_of_the_gateway_frees_everything(action: signal.Signals, victims: Victims) -> None:
    mesh = victims.mesh
    names = [InstanceId(name) for name in mesh.local.names() if name != "gateway"]
    joined = {name: times_joined(mesh, name) for name in names}
    losses = {name: times_lost(mesh, name) for name in names}
    doomed = [asyncio.ensure_future(stream(mesh, split, max_tokens=4000)) for split in ("full", 0)]
    await until_running(mesh)
    mesh.local.kill("gateway", action)
    if action == signal.SIGSTOP:
        # The workers must let go by themselves; that they have is seen when they join anew.
        for name in names:
            await until_lost_gateway(mesh, name, losses[name] + 1)
        mesh.local.kill("gateway", signal.SIGCONT)
    for events in await asyncio.gather(*doomed, return_exceptions=True):
        # A stopped gateway may find the last tokens in its socket when it goes on: then the answer is whole.
        whole = isinstance(events, list) and ended_well(events)
        assert not whole or action == signal.SIGSTOP
    for name in names:
        await until_joined(mesh, name, joined[name] + 1)
    await mesh.until_nothing_is_held()
    assert ended_well(await stream(mesh))


@pytest.mark.parametrize("gateway_first", [True, False])
async def test_a_pause_of_the_whole_machine_costs_nothing(gateway_first: bool, victims: Victims) -> None:
    mesh = victims.mesh
    workers = [InstanceId(name) for name in mesh.local.names() if name != "gateway"]
    losses = {name: (times_lost(mesh, name), times_joined(mesh, name)) for name in workers}
    served = [asyncio.ensure_future(stream(mesh, 0, max_tokens=1500)) for _ in range(2)]
    await until_running(mesh)
    everyone = ["gateway", *workers] if gateway_first else [*workers, "gateway"]
    for name in everyone:
        mesh.local.kill(name, signal.SIGSTOP)
    await asyncio.sleep(2 * LEASE_S)
    for name in everyone:
        mesh.local.kill(name, signal.SIGCONT)
    for events in await asyncio.gather(*served):
        assert ended_well(events)
    assert {name: (times_lost(mesh, name), times_joined(mesh, name)) for name in workers} == losses


async def die_and_recover(point: FaultPoint, action: str, victims: Victims) -> None:
    try:
        await a_death_and_its_aftermath(point, action, victims)
    except (AssertionError, TimeoutError) as error:
        # Several processes have a part in what went wrong: none is seen from here but by its log.
        mesh = victims.mesh
        for name in mesh.local.names():
            error.add_note(f"the end of the log of {name}:\n" + "\n".join(mesh.local.logs(InstanceId(name))[-40:]))
        raise


async def a_death_and_its_aftermath(point: FaultPoint, action: str, victims: Victims) -> None:
    mesh = victims.mesh
    name = InstanceId("p0" if point.startswith("prefill") else "d1")
    pid, joined = mesh.pid(name), times_joined(mesh, name)
    async with asyncio.timeout(DEADLINE_S + 5):
        # The first request runs on d0 alone, so that the next, which meets its fate, goes to p0 and d1.
        bystander = asyncio.ensure_future(stream(mesh, split=0, max_tokens=1500))
        await until_running(mesh)
        Faults.arm(victims.fault_file, name, point, action)
        doomed = asyncio.ensure_future(stream(mesh))
        await gone(victims.fault_file)
        others = await asyncio.gather(*(stream(mesh, split) for split in (0, 7, "full")))
        events = await doomed
        assert ended_well(await bystander), "the others go on"
    check(point, events)
    for other in others:
        check_other(other)
    if action == "stop":
        await until_lost(mesh, name)
        mesh.local.kill(name, signal.SIGCONT)
    await until_joined(mesh, name, joined + 1)
    assert (mesh.pid(name) == pid) is (action == "stop")
    await mesh.until_nothing_is_held()
    for _ in range(3):
        assert ended_well(await stream(mesh))
    # The next test counts on an idle mesh to know where its request goes.
    await mesh.until_nothing_is_held()


async def stream(mesh: Processes, split: str | int = "full", max_tokens: int = 12) -> list[Any]:
    """The events of one streamed completion; what is not an event stream is one event."""
    body = {
        "model": "smollm2",
        "prompt": PROMPT,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "pdmesh": {"split": split},
    }
    async with mesh.client.post("/v1/completions", json=body) as response:
        if response.content_type != "text/event-stream":
            return [await response.json()]
        lines = (await response.text()).splitlines()
    payloads = [line.removeprefix("data: ") for line in lines if line]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def ended_well(events: list[Any]) -> bool:
    return bool(events[-1] == "[DONE]")


def check(point: FaultPoint, events: list[Any]) -> None:
    if point is FaultPoint.PREFILL_RELEASED:
        assert ended_well(events), "D has all KV: P is not needed any more"
        return
    assert not ended_well(events), "the fault did not happen"
    code = events[-1]["error"]["code"]
    allowed = {"prefill_lost", "handoff_failed"} if point.startswith("prefill") else {"decode_lost", "handoff_failed"}
    assert code in allowed, events
    # How many tokens came before is not asserted: what a process had put into its socket may die with it.


def check_other(events: list[Any]) -> None:
    """A request sent after the death: it is served elsewhere, unless the loss was not noticed when it was placed."""
    if not ended_well(events):
        assert events[-1]["error"]["code"] in {"prefill_lost", "decode_lost", "handoff_failed", "no_instance"}, events


async def until_running(mesh: Processes) -> None:
    while not await mesh.metric('pdmesh_instance_context_tokens{instance="d0"}'):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def gone(file: Path) -> None:
    while file.exists():  # noqa: ASYNC110, ASYNC240 - another process removes it
        await asyncio.sleep(0.01)


def times_joined(mesh: Processes, name: InstanceId) -> int:
    return sum("joined the mesh with generation" in line for line in mesh.local.logs(name))


async def until_lost_gateway(mesh: Processes, name: InstanceId, times: int) -> None:
    async with asyncio.timeout(20):
        while times_lost(mesh, name) < times:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def until_lost(mesh: Processes, name: InstanceId) -> None:
    """The gateway counts the instance as lost."""
    async with asyncio.timeout(10):
        while f'pdmesh_instance_steps{{instance="{name}"}}' in await mesh.metrics():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def times_lost(mesh: Processes, name: InstanceId) -> int:
    return sum("lost the membership" in line for line in mesh.local.logs(name))


async def until_joined(mesh: Processes, name: InstanceId, times: int) -> None:
    """The instance has joined again, as a new process or as a new life of the old one."""
    try:
        async with asyncio.timeout(40):
            while times_joined(mesh, name) < times or not await is_ready(mesh):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{name} has not joined again; its log:\n" + "\n".join(mesh.local.logs(name))) from None


async def is_ready(mesh: Processes) -> bool:
    try:
        async with mesh.client.get("/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
