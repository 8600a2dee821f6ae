"""A worker that went without a word is noticed by the first message that it cannot be sent."""

from pathlib import Path

import pytest

from common.ids import InstanceId
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
