"""Promises 1 and 5 in bad weather: forwards fail, clients leave, workers crash, stop and come back.

Nothing here says when what happens: a seed draws it, and the order of threads and sockets does the rest.  Whatever
comes of it, what a client was told is the undisturbed answer or its beginning, who was told nothing more was told why,
nobody holds anything in the end, and once the weather is fine again everybody gets the whole answer.
"""

import asyncio
import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from common.config.types import InstanceConfig, MeshConfig
from common.kv.layout import KVOrder
from common.messages.control import Role
from services.engine.runner import Runner, Sampled, StepItem
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from tests.mesh.inprocess import InProcessMesh, in_process_mesh, mesh_config
from transfer.backends.base import Backend
from transfer.backends.inproc import InprocBackend, InprocFaults
from transfer.backends.tcp import TcpBackend

REQUESTS = 36
LONGEST_PROMPT, LONGEST_ANSWER = 60, 24
REASONS = {
    429: {"overloaded"},
    500: {"engine_failed"},
    503: {"no_instance", "prefill_lost", "decode_lost", "handoff_failed"},
    504: {"deadline_exceeded"},
}
"""What a client may be told when nothing is wrong with its request, by status."""


class Plan(msgspec.Struct, frozen=True):
    """What one client does."""

    body: dict[str, Any]
    split: Any
    comes_after_s: float
    leaves_after_s: float | None


class Told(msgspec.Struct, frozen=True):
    """What one client saw: the text of each choice as far as it came, and how it ended."""

    texts: dict[int, str]
    error: str | None = None
    """None: the answer is whole."""


class Weather:
    """What the engines of one mesh suffer; fine weather is `is_bad = False`."""

    def __init__(self, seed: int) -> None:
        self.is_bad = True
        self._seed = seed
        self._lives = 0

    def next_life(self, instance: InstanceConfig) -> random.Random:
        self._lives += 1
        return random.Random(f"{self._seed} {instance.id} {self._lives}")


class UnsteadyRunner(DeterministicRunner):
    """Fails now and then, in the middle of a step: some of its layers are written and announced by then.

    Holds the longest request alone and a little more, or several.
    """

    def __init__(self, instance: InstanceConfig, weather: Weather) -> None:
        layout = deterministic_layout(block_size=instance.block_size, order=instance.order, layers=4)
        most = layout.blocks_for(LONGEST_PROMPT + LONGEST_ANSWER)
        self._weather = weather
        self._draw = weather.next_life(instance)
        super().__init__(layout, most + self._draw.randint(0, 2 * most), vocab_size=258, step_seconds=0.001)

    def run(
        self, items: Sequence[StepItem], on_layer: Callable[[int], None] | None = None
    ) -> list[tuple[Sampled, ...]]:
        fails_at = self._draw.randrange(4) if self._weather.is_bad and self._draw.random() < 0.015 else None

        def layer_done(layer: int) -> None:
            if on_layer is not None:
                on_layer(layer)
            if layer == fails_at:
                raise RuntimeError(f"the device failed after layer {layer}")

        return super().run(items, layer_done)


def unsteady_config(draw: random.Random) -> MeshConfig:
    """Two of each role, all short of something: of blocks, slots or budget, so that they preempt and recompute."""
    config = mesh_config(prefill=2, decode=2, deadline_s=8.0, prefill_slots=draw.choice((1, 3)), queue=REQUESTS)
    block_size, order = draw.choice((1, 4, 16)), draw.choice(list(KVOrder))

    def shrunk(instance: InstanceConfig) -> InstanceConfig:
        batch = draw.choice((1, 2, 6)) if instance.role is Role.DECODE else draw.choice((2, 6))
        return msgspec.structs.replace(
            instance,
            block_size=block_size,
            order=order,
            max_batch=batch,
            budget=batch + draw.choice((0, 3, 40)),
            prefill_chunk=draw.choice((None, 7)),
        )

    return msgspec.structs.replace(config, instances=tuple(shrunk(instance) for instance in config.instances))


def plan_of(draw: random.Random) -> Plan:
    length = draw.randint(2, LONGEST_PROMPT)
    choices = draw.choice((1, 1, 1, 2, 5))
    return Plan(
        body={
            "model": "smollm2",
            "prompt": "".join(draw.choices("abcdefgh ", k=length)),
            "max_tokens": draw.randint(1, LONGEST_ANSWER),
            "temperature": 0 if choices == 1 and draw.random() < 0.5 else 1,
            "seed": draw.randrange(1 << 30),
            "n": choices,
            "ignore_eos": draw.random() < 0.5,
        },
        split=draw.choice((0, "full", "full", draw.random(), draw.randint(1, length))),
        comes_after_s=draw.uniform(0, 1.5),
        leaves_after_s=draw.uniform(0, 0.3) if draw.random() < 0.25 else None,
    )


async def undisturbed(folder: Path, plans: Sequence[Plan]) -> list[dict[int, str]]:
    """What each is told alone, by an engine with room for all of it, with nothing taken over."""
    async with in_process_mesh(mesh_config(prefill=1, decode=1), folder) as mesh:
        return [(await said(mesh, plan.body | {"pdmesh": {"split": 0}})) for plan in plans]


async def said(mesh: InProcessMesh, body: dict[str, Any]) -> dict[int, str]:
    async with mesh.client.post("/v1/completions", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return {choice["index"]: choice["text"] for choice in answer["choices"]}


async def ask(mesh: InProcessMesh, plan: Plan) -> Told:
    """Be a client; it notes what it was told up to the moment it leaves."""
    await asyncio.sleep(plan.comes_after_s)
    texts: dict[int, str] = {}
    try:
        async with asyncio.timeout(plan.leaves_after_s):
            return Told(texts, await listen(mesh, plan, texts))
    except TimeoutError:
        return Told(texts, "the client left")


async def listen(mesh: InProcessMesh, plan: Plan, texts: dict[int, str]) -> str | None:
    body = plan.body | {"pdmesh": {"split": plan.split}, "stream": True}
    # A kept connection may be one that the gateway is about to close, after a stream that failed.
    async with mesh.client.post("/v1/completions", json=body, headers={"Connection": "close"}) as response:
        if response.status != 200:
            error = (await response.json())["error"]
            assert error["code"] in REASONS[response.status], error
            return str(error["code"])
        return await read_stream(response, texts)


async def read_stream(response: aiohttp.ClientResponse, texts: dict[int, str]) -> str | None:
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]\n":
            return None
        event = json.loads(line[6:])
        if "error" in event:
            assert any(event["error"]["code"] in codes for codes in REASONS.values()), event
            return str(event["error"]["code"])
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    raise AssertionError("a stream ended without [DONE] and without an error")


async def disturb(mesh: InProcessMesh, draw: random.Random) -> None:
    """Workers go, told or untold, and come back; one at a time, so that somebody is there to ask."""
    for _ in range(4):
        await asyncio.sleep(draw.uniform(0.05, 0.3))
        name = draw.choice(list(mesh.workers))
        await draw.choice((mesh.crash_worker, mesh.crash_worker, mesh.stop_worker))(name)
        await asyncio.sleep(draw.choice((0.0, 0.2)))
        await mesh.start_worker(name)


@pytest.mark.parametrize("seed", range(4))
async def test_every_answer_is_the_undisturbed_one_and_nothing_is_left(
    seed: int, deterministic_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(seed)
    config = unsteady_config(draw)
    plans = [plan_of(draw) for _ in range(REQUESTS)]
    expected = await undisturbed(deterministic_folder, plans)
    weather = Weather(seed)
    backend: Backend = TcpBackend() if seed % 2 else InprocBackend(InprocFaults(write_delay_s=0.001))

    def build(instance: InstanceConfig) -> Runner:
        return UnsteadyRunner(instance, weather)

    async with in_process_mesh(config, deterministic_folder, backend=backend, build=build) as mesh:
        clients = [asyncio.ensure_future(ask(mesh, plan)) for plan in plans]
        await disturb(mesh, draw)
        check(await asyncio.wait_for(asyncio.gather(*clients), 20), expected)
        await mesh.until_nothing_is_held()
        mesh.assert_serving()
        weather.is_bad = False
        await mesh.until_all_are_members()
        patient = [msgspec.structs.replace(plan, comes_after_s=0.0, leaves_after_s=None) for plan in plans]
        told = await asyncio.wait_for(asyncio.gather(*(ask(mesh, plan) for plan in patient)), 20)
        assert [saw.error for saw in told] == [None] * REQUESTS
        check(told, expected)
    faults = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert faults == []


def check(told: Sequence[Told], expected: Sequence[dict[int, str]]) -> None:
    for saw, whole in zip(told, expected, strict=True):
        for choice, text in saw.texts.items():
            assert whole[choice].startswith(text), saw
        if saw.error is None:
            assert saw.texts == whole
