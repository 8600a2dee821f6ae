"""Prompts that begin alike, in a whole mesh with its prefix caches on: the same answers, less computed, less moved."""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec

from common.config.types import InstanceConfig, MeshConfig
from common.ids import InstanceId
from common.kv.layout import KVOrder
from services.engine.runner import Runner
from tests.mesh.inprocess import Answer, deterministic, in_process_mesh, mesh_config

SYSTEM = "You are a fox that answers in one word, whatever the dog says. "
PROMPT = SYSTEM + "Who jumps over whom?"
P0, D0, D1 = InstanceId("p0"), InstanceId("d0"), InstanceId("d1")
TOKEN_BYTES = 4 * 2 * 2 * 4 * 4
"""Layers, K and V, heads, head_dim, float32."""


def cached(answer: Answer) -> int:
    usage = answer.body["usage"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def heartbeats() -> None:
    """The gateway hears of new blocks with heartbeats, which come every 0.05 s here."""
    await asyncio.sleep(0.3)


async def test_the_second_request_reuses_what_the_first_left(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(prefix_cache=True), deterministic_folder) as mesh:
        first = await mesh.complete(PROMPT, pdmesh={"split": 0})
        again = await mesh.complete(PROMPT, pdmesh={"split": 0})
        assert (cached(first), again.text) == (0, first.text)
        assert cached(again) == (first.body["usage"]["prompt_tokens"] - 1) // 4 * 4


async def test_d_takes_over_only_what_it_lacks(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(prefix_cache=True), deterministic_folder) as mesh:
        alone = await mesh.complete(PROMPT, pdmesh={"split": 0})
        await mesh.complete(SYSTEM, max_tokens=1, pdmesh={"split": 0})
        other = SYSTEM + "Do you like cats, little fox?"
        plain = await fresh(deterministic_folder, other)
        held = common_blocks(PROMPT, other)
        answer = await mesh.complete(other, pdmesh={"split": "full"})
        received = mesh.workers[D0].sink.payload_bytes_received
        split = answer.body["usage"]["prompt_tokens"] - 1
        assert received == (split - held) * TOKEN_BYTES
        assert mesh.workers[P0].source.payload_bytes_sent == received
        assert answer.text == plain.text != alone.text
        assert cached(answer) == 0, "P computed all of it"


async def test_p_is_let_go_where_d_has_its_part(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(prefix_cache=True), deterministic_folder) as mesh:
        alone = await mesh.complete(PROMPT, pdmesh={"split": 0})
        answer = await mesh.complete(PROMPT, pdmesh={"split": 20})
        assert answer.placement is not None
        assert answer.placement.startswith("prefill=p0; decode=d0; split=20"), "who says a split gets it"
        assert answer.text == alone.text
        assert cached(answer) >= 20
        assert mesh.workers[D0].sink.payload_bytes_received == 0
        await mesh.until_nothing_is_held()


async def test_the_router_needs_no_p_for_what_d_holds(deterministic_folder: Path) -> None:
    """The split of the mesh is `full`: once D is known to hold all blocks of the prompt, P is left alone."""
    async with in_process_mesh(mesh_config(prefix_cache=True), deterministic_folder) as mesh:
        prompt = PROMPT[: len(PROMPT) // 4 * 4]
        turn = await mesh.complete(prompt, max_tokens=8)
        assert turn.placement is not None
        assert turn.placement.startswith("prefill=p0")
        await heartbeats()
        # What follows the first turn: all but its last tokens are at D.
        steps = mesh.loads()[P0].steps
        again = await mesh.complete(prompt + "!", max_tokens=8)
        assert again.placement == "prefill=-; decode=d0; split=0; kv-bytes=0"
        assert mesh.loads()[P0].steps == steps
        assert cached(again) == again.body["usage"]["prompt_tokens"] - 1


async def test_the_router_sends_a_prompt_where_its_beginning_is(deterministic_folder: Path) -> None:
    config = msgspec.structs.replace(mesh_config(decode=2, prefix_cache=True), split=0)
    async with in_process_mesh(config, deterministic_folder) as mesh:
        homes = {}
        for name in ("fox", "dog", "cat", "owl"):
            beginning = f"{name}: " + SYSTEM
            homes[name] = where(await mesh.complete(beginning + "?"))
            await heartbeats()
        for name, home in homes.items():
            answer = await mesh.complete(f"{name}: {SYSTEM}again")
            assert where(answer) == home
            assert cached(answer) >= 60


async def test_a_new_life_holds_nothing(deterministic_folder: Path) -> None:
    config = msgspec.structs.replace(mesh_config(prefix_cache=True), split=0)
    async with in_process_mesh(config, deterministic_folder) as mesh:
        first = await mesh.complete(PROMPT)
        await heartbeats()
        await mesh.crash_worker(D0)
        await mesh.start_worker(D0)
        await mesh.until(lambda: mesh.gateway.mesh.not_ready() is None)
        await mesh.until_all_are_members()
        again = await mesh.complete(PROMPT)
        assert (cached(again), again.text) == (0, first.text)


async def test_an_engine_that_outlives_its_membership_tells_all_again(deterministic_folder: Path) -> None:
    """A worker that the gateway lost keeps its blocks, and the gateway hears of them anew."""
    config = msgspec.structs.replace(mesh_config(prefix_cache=True), split=0)
    async with in_process_mesh(config, deterministic_folder) as mesh:
        await mesh.complete(PROMPT)
        await heartbeats()
        worker = mesh.workers[D0]
        generation = worker._worker._member.generation
        worker._worker._member._send_failed = True
        await mesh.until(lambda: worker._worker._member.generation != generation)
        await mesh.until_all_are_members()
        await heartbeats()
        held = mesh.gateway.mesh._lifecycle._fleet._prefixes._held[D0]
        assert len(held) == mesh.loads()[D0].blocks_kept > 0
        assert cached(await mesh.complete(PROMPT)) > 0


async def test_random_prompts_in_a_crowd(deterministic_folder: Path) -> None:
    """Unlike blocks at P and D, few blocks, many beginnings, every split: as without a cache."""

    def small(instance: InstanceConfig) -> Runner:
        return deterministic(instance)

    draw = random.Random(7)
    beginnings = ["".join(draw.choices("abcdef", k=24)) for _ in range(4)]
    prompts = [draw.choice(beginnings)[: draw.randrange(4, 25)] + draw.choice("ghi") * 3 for _ in range(60)]
    splits: list[Any] = ["full", 0, 0.5, 5, None]
    async with in_process_mesh(unlike(prefix_cache=False), deterministic_folder, build=small) as mesh:
        expected = [(await mesh.complete(prompt, pdmesh={"split": 0})).text for prompt in prompts]
    async with in_process_mesh(unlike(prefix_cache=True), deterministic_folder, build=small) as mesh:
        hits = 0
        for at in range(0, len(prompts), 12):
            crowd = await asyncio.gather(
                *(
                    mesh.complete(prompt, pdmesh={"split": splits[(at + i) % 5]})
                    for i, prompt in enumerate(prompts[at : at + 12])
                )
            )
            assert [answer.text for answer in crowd] == expected[at : at + 12]
            hits += sum(cached(answer) > 0 for answer in crowd)
        assert hits > 10


def unlike(*, prefix_cache: bool) -> MeshConfig:
    config = mesh_config(prefill=2, decode=2, prefix_cache=prefix_cache)
    orders = {"p1": (8, KVOrder.HND), "d1": (2, KVOrder.HND)}
    instances = [
        msgspec.structs.replace(one, block_size=orders[one.id][0], order=orders[one.id][1]) if one.id in orders else one
        for one in config.instances
    ]
    return msgspec.structs.replace(config, instances=tuple(instances))


async def fresh(folder: Path, prompt: str) -> Answer:
    async with in_process_mesh(mesh_config(), folder) as mesh:
        return await mesh.complete(prompt, pdmesh={"split": 0})


def common_blocks(one: str, other: str) -> int:
    """Tokens, which are letters here, in whole blocks of four."""
    same = next(at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return same // 4 * 4


def where(answer: Answer) -> str:
    assert answer.placement is not None
    return answer.placement.split("; ")[1]
