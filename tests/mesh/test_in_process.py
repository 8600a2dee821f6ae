"""Three services in one process over the in-memory transport: answers, crowds, cancellation, loss, failures."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from common.config.types import InstanceConfig
from common.ids import InstanceId
from services.engine.runner import Runner
from tests.mesh.inprocess import deterministic, in_process_mesh, mesh_config
from transfer.backends.inproc import InprocBackend, InprocFaults

PROMPT = "the quick brown fox jumps over the lazy dog"
P0, P1, D0 = InstanceId("p0"), InstanceId("p1"), InstanceId("d0")


async def test_the_answer_is_the_same_for_every_split(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        alone = await mesh.complete(PROMPT, pdmesh={"split": 0})
        assert alone.placement == "prefill=-; decode=d0; split=0; kv-bytes=0"
        for split in (1, 4, 17, len(PROMPT) - 1, "full", 0.5, 1.0):
            answer = await mesh.complete(PROMPT, pdmesh={"split": split})
            assert answer.text == alone.text, split
            assert answer.placement is not None
            assert answer.placement.startswith("prefill=p0; decode=d0; split=")


async def test_the_planned_bytes_are_the_bytes_on_the_wire(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        answer = await mesh.complete(PROMPT, pdmesh={"split": 17})
        # 17 tokens x 4 layers x K and V x 2 heads x 4 x float32.
        assert answer.placement == f"prefill=p0; decode=d0; split=17; kv-bytes={17 * 4 * 2 * 2 * 4 * 4}"
        source, sink = mesh.workers[P0].source, mesh.workers[D0].sink
        assert source.payload_bytes_sent == sink.payload_bytes_received == 17 * 4 * 2 * 2 * 4 * 4


async def test_a_crowd_gets_what_each_gets_alone(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(prefill=2, decode=2), deterministic_folder) as mesh:
        prompts = [PROMPT[index:] + PROMPT[:index] for index in range(24)]
        alone = [(await mesh.complete(prompt, pdmesh={"split": 0})).text for prompt in prompts]
        splits: list[Any] = ["full", 0, 0.5, 7]
        crowd = await asyncio.gather(
            *(mesh.complete(p, pdmesh={"split": splits[i % 4]}) for i, p in enumerate(prompts))
        )
        assert [answer.text for answer in crowd] == alone
        assert {answer.placement.split(";")[1] for answer in crowd if answer.placement} == {" decode=d0", " decode=d1"}


async def test_choices_differ_and_repeat(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        texts = []
        for split in ("full", 0, 5):
            answer = await mesh.complete(PROMPT, n=3, seed=11, temperature=1, pdmesh={"split": split})
            texts.append([choice["text"] for choice in answer.body["choices"]])
        assert texts[0] == texts[1] == texts[2]
        assert len(set(texts[0])) == 3


async def test_a_client_that_leaves_frees_its_blocks(deterministic_folder: Path) -> None:
    def slow(instance: InstanceConfig) -> Runner:
        return deterministic(instance, step_seconds=0.01)

    async with in_process_mesh(mesh_config(), deterministic_folder, build=unhurried) as mesh:
        for split in (0, "full"):
            request = asyncio.ensure_future(
                mesh.complete(PROMPT, max_tokens=500, ignore_eos=True, pdmesh={"split": split})
            )
            await mesh.until(lambda: mesh.loads()[D0].context_tokens > len(PROMPT) + 3)
            request.cancel()
            await mesh.until_nothing_is_held()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_client_that_leaves_before_its_prompt_is_computed(role: str, deterministic_folder: Path) -> None:
    gate = threading.Event()

    def gated(instance: InstanceConfig) -> Runner:
        return deterministic(instance, gate=lambda: gate.wait(5) if instance.role == role else None)

    async with in_process_mesh(mesh_config(), deterministic_folder, build=gated) as mesh:
        request = asyncio.ensure_future(mesh.complete(PROMPT, pdmesh={"split": 20}))
        name = P0 if role == "prefill" else D0
        await mesh.until(lambda: mesh.loads()[name].blocks_used > 0 or mesh.loads()[name].tickets > 0)
        await asyncio.sleep(0.05)
        request.cancel()
        await asyncio.sleep(0.05)
        gate.set()
        await mesh.until_nothing_is_held()
        assert (await mesh.complete(PROMPT)).status == 200


@pytest.mark.parametrize("fault", ["corrupt_write", "drop_at_write", "stall_at_write"])
@pytest.mark.parametrize("at", [0, 2])
async def test_a_broken_hand_off_is_a_typed_error(fault: str, at: int, deterministic_folder: Path) -> None:
    backend = InprocBackend(InprocFaults(**{fault: at}))
    async with in_process_mesh(mesh_config(), deterministic_folder, backend=backend) as mesh:
        answer = await mesh.complete(PROMPT, pdmesh={"split": "full"})
        assert answer.status == 503, answer.body
        assert answer.body["error"]["code"] == "handoff_failed"
        assert (await mesh.complete(PROMPT, pdmesh={"split": 0})).status == 200


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_forward_that_fails_is_a_typed_error(role: str, deterministic_folder: Path) -> None:
    def failing(instance: InstanceConfig) -> Runner:
        return deterministic(instance, fail_at_step=0 if instance.role == role else None)

    async with in_process_mesh(mesh_config(), deterministic_folder, build=failing) as mesh:
        answer = await mesh.complete(PROMPT)
        # Where P fails D learns of it too, over the link; whose word reaches the gateway first counts.
        errors = {("engine_failed", 500)} | ({("handoff_failed", 503)} if role == "prefill" else set())
        assert (answer.body["error"]["code"], answer.status) in errors, answer.body
        assert (await mesh.complete(PROMPT)).status == 200, "the next one is served"


@pytest.mark.parametrize(("name", "kind"), [(P0, "prefill_lost"), (D0, "decode_lost")])
async def test_a_lost_worker_fails_its_requests_and_joins_again(
    name: InstanceId, kind: str, deterministic_folder: Path
) -> None:
    gate = threading.Event()

    def gated(instance: InstanceConfig) -> Runner:
        return deterministic(instance, gate=lambda: gate.wait(5) if instance.id == name else None)

    async with in_process_mesh(mesh_config(), deterministic_folder, build=gated) as mesh:
        doomed = asyncio.ensure_future(mesh.complete(PROMPT))
        await mesh.until(lambda: mesh.loads()[name].running > 0)
        crash = asyncio.ensure_future(mesh.crash_worker(name))
        answer = await doomed
        assert answer.status == 503, answer.body
        assert answer.body["error"]["code"] in (kind, "handoff_failed")
        gate.set()
        await crash
        await mesh.until(lambda: mesh.gateway.mesh.not_ready() is not None)
        refused = await mesh.complete(PROMPT)
        assert (refused.status, refused.body["error"]["code"]) == (503, "no_instance")
        await mesh.start_worker(name)
        await mesh.until(lambda: mesh.gateway.mesh.not_ready() is None)
        assert (await mesh.complete(PROMPT)).status == 200


def unhurried(instance: InstanceConfig) -> Runner:
    return deterministic(instance, step_seconds=0.01)


async def test_whatever_a_worker_says_the_others_are_heard(
    deterministic_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        heard, meter = mesh.gateway.mesh._meter.heard, mesh.gateway.mesh._meter
        broken: list[str] = []

        def breaks_once(*arguments: Any) -> None:
            if not broken:
                broken.append("once")
                raise RuntimeError("a fault of the meter")
            heard(*arguments)

        monkeypatch.setattr(meter, "heard", breaks_once)
        await mesh.until(lambda: bool(broken))
        assert (await mesh.complete(PROMPT)).status == 200
        assert "could not be taken in" in caplog.text


async def test_nobody_is_lost_because_the_loop_stood_still(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder, build=unhurried) as mesh:
        lives = [worker.jobs.generation for worker in mesh.workers.values()]
        for _ in range(3):
            request = asyncio.ensure_future(mesh.complete(PROMPT, max_tokens=30, ignore_eos=True))
            await mesh.until(lambda: mesh.loads()[D0].context_tokens > len(PROMPT) + 3)
            time.sleep(1.5 * mesh.config.gateway.lease_s)  # noqa: ASYNC251 - the loop is to stand still
            assert (await request).body["usage"]["completion_tokens"] == 30
        assert [worker.jobs.generation for worker in mesh.workers.values()] == lives


async def test_a_flood_is_refused_with_a_time_to_come_back(deterministic_folder: Path) -> None:
    def slow(instance: InstanceConfig) -> Runner:
        return deterministic(instance, step_seconds=0.002)

    async with in_process_mesh(mesh_config(queue=4), deterministic_folder, build=slow) as mesh:
        answers = await asyncio.gather(*(mesh.complete(PROMPT) for _ in range(60)))
        statuses = {answer.status for answer in answers}
        assert statuses == {200, 429}
        assert {a.body["error"]["code"] for a in answers if a.status == 429} == {"overloaded"}


async def test_a_deadline_ends_a_request_that_cannot_be_served(deterministic_folder: Path) -> None:
    def stuck(instance: InstanceConfig) -> Runner:
        return deterministic(instance, step_seconds=0.05)

    async with in_process_mesh(mesh_config(deadline_s=0.6), deterministic_folder, build=stuck) as mesh:
        answer = await mesh.complete(PROMPT, max_tokens=400, ignore_eos=True)
        assert (answer.status, answer.body["error"]["code"]) == (504, "deadline_exceeded")
        assert "the deadline passed while the request ran at instance 'p0'" in answer.body["error"]["message"]


async def test_a_worker_that_leaves_finishes_what_it_has(deterministic_folder: Path) -> None:
    def slow(instance: InstanceConfig) -> Runner:
        return deterministic(instance, step_seconds=0.005)

    async with in_process_mesh(mesh_config(decode=2), deterministic_folder, build=unhurried) as mesh:
        requests = [asyncio.ensure_future(mesh.complete(PROMPT, max_tokens=40)) for _ in range(4)]
        await mesh.until(lambda: mesh.loads()[D0].running > 0)
        await mesh.stop_worker(D0)
        assert [answer.status for answer in await asyncio.gather(*requests)] == [200] * 4
        assert (await mesh.complete(PROMPT)).placement == (await mesh.complete(PROMPT)).placement
