"""A whole mesh in one process whose control port needs keys: it serves, and one instance's key goes and comes back."""

import asyncio
from pathlib import Path

from common.bus.key_files import make_keys, withdraw_key
from common.config.types import InstanceConfig
from common.ids import InstanceId
from services.engine.runner import Runner
from tests.mesh.inprocess import deterministic, in_process_mesh, mesh_config

PROMPT = "the quick brown fox jumps over the lazy dog"
P0, D0 = InstanceId("p0"), InstanceId("d0")


def slow(instance: InstanceConfig) -> Runner:
    return deterministic(instance, step_seconds=0.005)


async def test_a_revoked_instance_loses_its_requests_and_returns_with_a_new_key(
    deterministic_folder: Path, tmp_path: Path
) -> None:
    make_keys(tmp_path, [P0, D0])
    async with in_process_mesh(mesh_config(control_keys=str(tmp_path)), deterministic_folder, build=slow) as mesh:
        before = await mesh.complete(PROMPT)
        assert before.placement is not None
        assert before.placement.startswith("prefill=p0; decode=d0")
        running = asyncio.ensure_future(mesh.complete(PROMPT, max_tokens=200, ignore_eos=True))
        await mesh.until(lambda: mesh.loads()[D0].running == 1)
        withdraw_key(tmp_path, D0)
        lost = await running
        assert (lost.status, lost.body["error"]["code"]) == (503, "decode_lost")
        refused = await mesh.complete(PROMPT)
        assert (refused.status, refused.body["error"]["code"]) == (503, "no_instance")
        mesh.assert_serving()
        make_keys(tmp_path, [], [D0])
        await mesh.until(lambda: mesh.gateway.mesh.not_ready() is None)
        assert (await mesh.complete(PROMPT)).text == before.text
        assert "pdmesh_control_refused_total 0.0" not in mesh.gateway.metrics.render().decode()
