"""/metrics after requests of which everything is known: figures by value, times by what was held back."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.mesh.inprocess import InProcessMesh, mesh_config
from tests.mesh.turnstiles import MANY, stepwise
from transfer.backends.base import Link
from transfer.backends.inproc import InprocBackend, InprocFaults

PROMPT = "the quick brown fox jumps over the lazy dog"
TOKENS = 6
HELD_S = 0.2
AT_LEAST_S = 0.9 * HELD_S
"""What is left of it by a clock that is a little coarser than ours."""
DELAY_S = 0.01
TOKEN_BYTES = 4 * 2 * 2 * 4 * 4
"""Layers x (K, V) x KV heads x head size x float32."""


class Page:
    """What /metrics showed."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all labels that are not given; 0 where nothing is shown."""
        return sum(self.by(name, *labels, wanted=tuple(labels.values())).values())

    def by(self, name: str, *labels: str, wanted: tuple[str, ...] | None = None) -> dict[tuple[str, ...], float]:
        """Values by the values of `labels`, without those that are 0."""
        found: dict[tuple[str, ...], float] = {}
        for sample in self._samples:
            if sample.name == f"pdmesh_{name}" and sample.value:
                key = tuple(sample.labels[label] for label in labels)
                if wanted in (None, key):
                    found[key] = found.get(key, 0.0) + sample.value
        return found


async def page(mesh: InProcessMesh) -> Page:
    async with mesh.client.get("/metrics") as response:
        return Page(await response.text())


async def shown(mesh: InProcessMesh, condition: Callable[[Page], bool]) -> Page:
    """The first page of which `condition` is true: loads come with heartbeats."""
    async with asyncio.timeout(10):
        while not condition(now := await page(mesh)):  # noqa: ASYNC110 - over HTTP, which has no event
            await asyncio.sleep(0.01)
    return now


async def ask(mesh: InProcessMesh, *, split: Any = "full", **parameters: Any) -> tuple[int, str]:
    body = {"model": mesh.config.model, "prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True}
    body |= {"pdmesh": {"split": split}, "temperature": 0} | parameters
    async with mesh.client.post("/v1/completions", json=body) as response:
        return response.status, await response.text()


@pytest.mark.parametrize("stream", [True, False])
async def test_the_times_and_tokens_of_an_answer(stream: bool, deterministic_folder: Path) -> None:
    async with stepwise(deterministic_folder, mesh_config()) as (mesh, steps):
        answer = asyncio.ensure_future(ask(mesh, stream=stream))
        now = await shown(mesh, lambda now: now.total("instance_queued_tokens", instance="p0") > 0)
        assert (now.total("requests_running"), now.total("prompt_tokens_total")) == (1, len(PROMPT))
        assert (now.total("ttft_seconds_count"), now.total("output_tokens_total")) == (0, 0)
        await asyncio.sleep(HELD_S)
        steps.prefill.let(MANY)
        steps.decode.let(1)

        first = await shown(mesh, lambda now: now.total("output_tokens_total") > 0)
        assert (first.total("ttft_seconds_count"), first.total("output_tokens_total")) == (1, 1)
        assert (first.total("tbt_seconds_count"), first.total("e2e_seconds_count")) == (0, 0)
        await asyncio.sleep(HELD_S)
        steps.decode.let(MANY)
        status, text = await answer
        assert (status, "[DONE]" in text) == (200, stream)

        last = await shown(mesh, lambda now: now.total("e2e_seconds_count") > 0)
        counts = {name: last.total(f"{name}_seconds_count") for name in ("ttft", "tbt", "e2e")}
        assert counts == {"ttft": 1, "tbt": TOKENS - 1, "e2e": 1}
        ttft_s, tbt_s, e2e_s = (last.total(f"{name}_seconds_sum") for name in counts)
        assert ttft_s == first.total("ttft_seconds_sum") >= AT_LEAST_S
        assert AT_LEAST_S <= tbt_s <= e2e_s - ttft_s + 1e-6, (ttft_s, tbt_s, e2e_s)
        assert (last.total("output_tokens_total"), last.total("prompt_tokens_total")) == (TOKENS, len(PROMPT))
        assert last.by("requests_total", "outcome") == {("finished",): 1}


async def test_the_outcomes_of_requests_and_what_is_held_meanwhile(deterministic_folder: Path) -> None:
    config = mesh_config(prefill_slots=1, queue=2)
    instances = tuple(msgspec.structs.replace(one, prefill_chunk=16) for one in config.instances)
    config = msgspec.structs.replace(config, instances=instances)
    async with stepwise(deterministic_folder, config) as (mesh, steps):
        placed = asyncio.ensure_future(ask(mesh))
        await shown(mesh, lambda now: now.total("requests_running") == 1)
        waiting = [asyncio.ensure_future(ask(mesh)) for _ in range(2)]
        await shown(mesh, lambda now: now.total("requests_queued") == 2)
        assert (await ask(mesh))[0] == 429
        assert (await ask(mesh, max_tokens=-1))[0] == 400

        steps.prefill.let(1)
        now = await shown(mesh, lambda now: now.total("instance_queued_tokens", instance="p0") == len(PROMPT) - 1 - 16)
        assert (now.total("requests_running"), now.total("requests_queued")) == (1, 2)
        assert now.total("instance_running", instance="p0") == 1
        used, total = (now.total(f"instance_blocks_{name}", instance="p0") for name in ("used", "total"))
        assert now.by("instance_kv_use_ratio", "instance")["p0",] == used / total

        placed.cancel()
        waiting[1].cancel()
        await shown(mesh, lambda now: now.total("requests_total", outcome="cancelled") == 2)
        steps.open()
        assert (await waiting[0])[0] == 200
        await mesh.until_nothing_is_held()
        held = ("requests_running", "requests_queued", "instance_running", "instance_kv_use_ratio")
        after = await shown(mesh, lambda now: not any(now.total(name) for name in held))
        outcomes = {"finished": 1.0, "cancelled": 2.0, "overloaded": 1.0, "refused": 1.0}
        assert after.by("requests_total", "outcome") == {(name,): count for name, count in outcomes.items()}
        # A request that the mesh never had has no time.
        assert (after.total("e2e_seconds_count"), after.total("ttft_seconds_count")) == (4, 1)
        assert after.total("output_tokens_total") == TOKENS


class Breakable(InprocBackend):
    """Links to `broken` break in the middle of a hand-off; the others' writes take DELAY_S once there is one."""

    broken: str | None = None

    async def connect(self, endpoint: str) -> Link:
        if self.broken is not None:
            is_whole = endpoint != self.broken
            self._faults = InprocFaults(write_delay_s=DELAY_S) if is_whole else InprocFaults(drop_at_write=1)
        return await super().connect(endpoint)


async def test_hand_offs_are_counted_for_their_pair(deterministic_folder: Path) -> None:
    backend = Breakable()
    async with stepwise(deterministic_folder, mesh_config(prefill=2), backend) as (mesh, steps):
        # What a link is measured with would break as well.
        await mesh.until(lambda: len(mesh.gateway.mesh.links()) == 2)
        # The instance that started first listens at the first name.
        backend.broken = "inproc://p0"
        answers = [asyncio.ensure_future(ask(mesh, split=split)) for split in (17, 17, 30, 30)]
        await shown(mesh, lambda now: now.total("requests_running") == 4)
        placed = [trace.placement for trace in mesh.gateway.traces.newest(4) if trace.placement is not None]
        steps.open()
        found = [await answer for answer in answers]
        await mesh.until_nothing_is_held()

        splits = [placement.split for placement in placed if placement.prefill == "p1"]
        lost = len(placed) - len(splits)
        assert min(len(splits), lost) > 0
        assert sorted(status for status, _ in found) == [200] * len(splits) + [503] * lost
        now = await page(mesh)
        pair = {"prefill": "p1", "decode": "d0", "backend": "inproc"}
        assert now.by("handoff_bytes_total", *pair) == {tuple(pair.values()): sum(splits) * TOKEN_BYTES}
        assert now.by("handoff_seconds_count", *pair) == {tuple(pair.values()): len(splits)}
        assert len(splits) * DELAY_S * 0.9 <= now.total("handoff_seconds_sum") <= now.total("e2e_seconds_sum")
        assert now.by("handoff_failures_total", "prefill", "decode") == {("p0", "d0"): lost}
        assert now.by("requests_total", "outcome") == {("finished",): len(splits), ("handoff_failed",): lost}
