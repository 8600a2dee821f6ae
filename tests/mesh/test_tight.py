"""Instances that are short of everything: one slot, one token a step, blocks for hardly one request."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec

from common.config.types import InstanceConfig, MeshConfig
from common.ids import InstanceId
from common.messages.control import Role
from services.engine.runner import Runner
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from tests.mesh.inprocess import deterministic, in_process_mesh, mesh_config

PROMPT = "thirty-three letters, or nine of its blocks"[:33]
P0, D0 = InstanceId("p0"), InstanceId("d0")


def runner_of(blocks: int, **faults: Any) -> Runner:
    return DeterministicRunner(deterministic_layout(block_size=4, layers=4), blocks, vocab_size=258, **faults)


def with_instances(config: MeshConfig, **changes: Any) -> MeshConfig:
    changed = tuple(msgspec.structs.replace(instance, **changes) for instance in config.instances)
    return msgspec.structs.replace(config, instances=changed)


def texts(answer: Any) -> list[str]:
    assert answer.status == 200, answer.body
    return [choice["text"] for choice in answer.body["choices"]]


async def test_more_choices_than_slots_one_token_a_step(deterministic_folder: Path) -> None:
    asked: dict[str, Any] = {"n": 5, "seed": 3, "temperature": 1, "max_tokens": 12, "ignore_eos": True}
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        roomy = texts(await mesh.complete(PROMPT, **asked))
    config = with_instances(mesh_config(), max_batch=1, budget=1)
    # The prompt and its answer take eleven blocks; the five choices can never all be there.
    async with in_process_mesh(config, deterministic_folder, build=lambda _: runner_of(12)) as mesh:
        splits: list[Any] = [0, "full", 5, "full"]
        answers = await asyncio.gather(*(mesh.complete(PROMPT, **asked, pdmesh={"split": s}) for s in splits))
        assert [texts(answer) for answer in answers] == [roomy] * len(splits)


async def test_a_hand_off_that_holds_all_blocks_delays_others_and_stops_nobody(deterministic_folder: Path) -> None:
    may_compute = threading.Event()

    def build(instance: InstanceConfig) -> Runner:
        if instance.role is Role.PREFILL:
            return deterministic(instance, gate=lambda: may_compute.wait(10))
        return runner_of(11)

    handed: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 11}
    other: dict[str, Any] = {"prompt": PROMPT[:20], "max_tokens": 20, "pdmesh": {"split": 0}}
    async with in_process_mesh(mesh_config(), deterministic_folder, build=build) as mesh:
        first = asyncio.ensure_future(mesh.complete(**handed))
        await mesh.until(lambda: mesh.loads()[D0].blocks_used == 9)
        second = asyncio.ensure_future(mesh.complete(**other))
        await mesh.until(lambda: mesh.loads()[D0].waiting == 1)
        await mesh.workers[D0].engine.check_integrity()
        assert mesh.loads()[D0].steps == 0, "there is nothing to compute"
        may_compute.set()
        late = [texts(await first), texts(await second)]
        assert late == [texts(await mesh.complete(**handed)), texts(await mesh.complete(**other))]


async def test_who_decodes_gives_way_to_a_hand_off_and_starts_over_afterwards(deterministic_folder: Path) -> None:
    may_compute = threading.Event()

    def build(instance: InstanceConfig) -> Runner:
        if instance.role is Role.PREFILL:
            return deterministic(instance, gate=lambda: may_compute.wait(10))
        return runner_of(13)

    growing: dict[str, Any] = {"prompt": "a", "max_tokens": 40, "ignore_eos": True, "pdmesh": {"split": 0}}
    async with in_process_mesh(mesh_config(), deterministic_folder, build=build) as mesh:
        alone = texts(await mesh.complete(**growing))
        # The last token comes before the engine counts the step that made it.
        await mesh.workers[D0].engine.check_integrity()
        steps = mesh.loads()[D0].steps
        handed = asyncio.ensure_future(mesh.complete(PROMPT, max_tokens=12))
        await mesh.until(lambda: mesh.loads()[D0].blocks_used == 9)
        decoding = asyncio.ensure_future(mesh.complete(**growing))
        # Its 17th token needs a fifth block, and the hand-off holds the other nine.
        await mesh.until(lambda: mesh.loads()[D0].steps == steps + 16 and mesh.loads()[D0].waiting == 1)
        assert mesh.loads()[D0].blocks_used == 9
        may_compute.set()
        assert texts(await handed)
        assert texts(await decoding) == alone
