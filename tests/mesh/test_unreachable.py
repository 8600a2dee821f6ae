"""Workers that went without a word, and strangers."""

from pathlib import Path

import pytest

from common.bus.client import BusClient
from common.bus.codecs import from_worker_codec, to_worker_codec
from common.bus.drops import Drops
from common.clock import SystemClock
from common.ids import Generation, InstanceId
from common.messages.control import Heartbeat, Load, Rejected
from tests.mesh.inprocess import in_process_mesh, mesh_config


@pytest.mark.parametrize(("name", "kind"), [("p0", "prefill_lost"), ("d0", "decode_lost")])
async def test_a_request_for_a_worker_that_is_gone_fails_at_once(
    name: str, kind: str, deterministic_folder: Path
) -> None:
    # A lease far beyond the test's patience: only the undeliverable message can tell.
    async with in_process_mesh(mesh_config(lease_s=600.0, deadline_s=600.0), deterministic_folder) as mesh:
        await mesh.crash_worker(InstanceId(name))
        answer = await mesh.complete("a prompt")
        assert (answer.status, answer.body["error"]["code"]) == (503, kind)
        assert mesh.gateway.mesh.not_ready() is not None
        await mesh.start_worker(InstanceId(name))
        await mesh.until(lambda: mesh.gateway.mesh.not_ready() is None)
        assert (await mesh.complete("a prompt")).status == 200


async def test_what_a_stranger_reports_is_not_shown(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        gateway = mesh.gateway
        clock = SystemClock()
        stranger = BusClient(gateway.control, to_worker_codec(), from_worker_codec(), drops=Drops(clock))
        await stranger.start()
        try:
            await mesh.until(lambda: stranger.send(Heartbeat(InstanceId("p9"), Generation(1), Load(running=1))))
            (answer,) = await stranger.receive_many()
            assert isinstance(answer, Rejected)
        finally:
            await stranger.close()
        shown = gateway.metrics.render().decode()
        assert 'instance="d0"' in shown
        assert '"p9"' not in shown
