"""Blocks lent to a hand-off come back to the engine only when no thread of the transfer touches them any more."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.types import InstanceConfig
from common.ids import InstanceId
from services.engine.runner import Runner
from services.engine.twin.deterministic import DeterministicRunner, deterministic_layout
from tests.mesh.inprocess import in_process_mesh, mesh_config
from transfer.backends.base import Backend
from transfer.backends.inproc import InprocBackend
from transfer.backends.tcp import TcpBackend

PROMPT = "a prompt of many segments, so that some are on their way while others are still to be copied"
P0, D0 = InstanceId("p0"), InstanceId("d0")


class WatchedTensor(torch.Tensor):
    """Calls `on_use`, a class attribute, before anything is done with it or a view of it."""

    on_use: Callable[[], None] = staticmethod(lambda: None)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        cls.on_use()
        return super().__torch_function__(function, types, args, kwargs)  # type: ignore[no-untyped-call]


class Copying:
    """Stops the first thread named `prefix…` that touches the cache once `has_begun`, until told to go on."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.has_begun: Callable[[], bool] = lambda: False
        self.is_stopped = threading.Event()
        self.may_go_on = threading.Event()

    def on_use(self) -> None:
        if self.has_begun() and threading.current_thread().name.startswith(self._prefix):
            self.is_stopped.set()
            self.may_go_on.wait(10)


@pytest.mark.parametrize(("name", "other", "thread"), [(P0, D0, "kv-source"), (D0, P0, "kv-sink")])
@pytest.mark.parametrize("backend", [InprocBackend, TcpBackend])
async def test_blocks_are_not_free_while_a_copy_of_an_aborted_hand_off_runs(
    backend: Callable[[], Backend], name: InstanceId, other: InstanceId, thread: str, deterministic_folder: Path
) -> None:
    copying = Copying(thread)

    class Tensor(WatchedTensor):
        on_use = copying.on_use

    def watched(instance: InstanceConfig) -> Runner:
        runner = DeterministicRunner(deterministic_layout(block_size=4, layers=4), 256, vocab_size=258)
        runner.kv.keys, runner.kv.values = (
            tuple(cache.as_subclass(Tensor) for cache in caches) for caches in (runner.kv.keys, runner.kv.values)
        )
        return runner

    async with in_process_mesh(mesh_config(), deterministic_folder, backend=backend(), build=watched) as mesh:
        alone = await mesh.complete(PROMPT, pdmesh={"split": 0})
        # Not at the first touch of all: that only looks where the blocks are.
        copying.has_begun = lambda: mesh.workers[D0].sink.payload_bytes_received > 0
        request = asyncio.ensure_future(mesh.complete(PROMPT))
        await mesh.until(copying.is_stopped.is_set)
        request.cancel()
        # The abort has reached both sides by then.
        await mesh.until(lambda: mesh.loads()[other].blocks_used == 0)
        await mesh.workers[name].engine.check_integrity()
        await asyncio.sleep(0.02)
        await mesh.workers[name].engine.check_integrity()
        assert mesh.loads()[name].blocks_used > 0, "the engine may give these blocks to others already"
        copying.may_go_on.set()
        await mesh.until_nothing_is_held()
        assert (await mesh.complete(PROMPT)).text == alone.text
