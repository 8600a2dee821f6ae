"""KV leaves layer by layer while P computes, and D decodes others meanwhile. By order of events, not by time."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from common.config.types import InstanceConfig
from common.ids import InstanceId
from common.messages.control import Role
from services.engine.runner import Runner, Sampled, StepItem
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from tests.mesh.inprocess import deterministic, in_process_mesh, mesh_config

PROMPT = "a prompt whose first layer must reach the other side before its second one is computed"
P0, D0 = InstanceId("p0"), InstanceId("d0")


class HaltingRunner(DeterministicRunner):
    """Stops after the first layer of every step until `proceed` is set."""

    def __init__(self, proceed: threading.Event) -> None:
        super().__init__(deterministic_layout(block_size=4, layers=4), 256, vocab_size=258)
        self._proceed = proceed
        self.waited_in_vain = False

    def run(
        self, items: Sequence[StepItem], on_layer: Callable[[int], None] | None = None
    ) -> list[tuple[Sampled, ...]]:
        def halt(layer: int) -> None:
            if on_layer is not None:
                on_layer(layer)
            if layer == 0 and not self._proceed.wait(10):
                self.waited_in_vain = True

        return super().run(items, halt)


async def test_the_first_layer_lands_while_the_second_is_not_computed(deterministic_folder: Path) -> None:
    proceed = threading.Event()
    halting = HaltingRunner(proceed)

    def build(instance: InstanceConfig) -> Runner:
        return halting if instance.role is Role.PREFILL else deterministic(instance)

    async with in_process_mesh(mesh_config(), deterministic_folder, build=build) as mesh:
        request = asyncio.ensure_future(mesh.complete(PROMPT))
        sink = mesh.workers[D0].sink
        first_layer_bytes = (len(PROMPT) - 1) * 2 * 2 * 4 * 4
        await mesh.until(lambda: sink.payload_bytes_received == first_layer_bytes)
        proceed.set()
        answer = await request
        assert not halting.waited_in_vain
        assert answer.text == (await mesh.complete(PROMPT, pdmesh={"split": 0})).text


async def test_others_decode_while_kv_comes_in(deterministic_folder: Path) -> None:
    proceed = threading.Event()

    def build(instance: InstanceConfig) -> Runner:
        return HaltingRunner(proceed) if instance.role is Role.PREFILL else deterministic(instance)

    async with in_process_mesh(mesh_config(), deterministic_folder, build=build) as mesh:
        waiting = asyncio.ensure_future(mesh.complete(PROMPT))
        await mesh.until(lambda: mesh.workers[D0].sink.payload_bytes_received > 0)
        other = await mesh.complete("somebody else", max_tokens=40, pdmesh={"split": 0})
        assert other.status == 200
        assert not waiting.done(), "its KV is still on the way"
        proceed.set()
        assert (await waiting).status == 200
