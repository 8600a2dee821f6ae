"""Instances that meet measure what is between them, and the gateway shows it."""

from pathlib import Path

from common.ids import InstanceId
from tests.mesh.inprocess import in_process_mesh, mesh_config
from transfer.backends.base import Link
from transfer.backends.inproc import InprocBackend
from transfer.errors import PeerLost


async def test_every_pair_is_measured_once_in_both_their_lives(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(prefill=2, decode=1), deterministic_folder) as mesh:
        gateway = mesh.gateway
        await mesh.until(lambda: len(gateway.mesh.links()) == 2)
        assert [(link.peer, link.instance) for link in gateway.mesh.links()] == [("p0", "d0"), ("p1", "d0")]
        for link in gateway.mesh.links():
            (figures,) = link.figures
            assert figures.backend == "inproc"
            assert min(figures.bytes_per_s, figures.round_trip_s) > 0
        assert (
            'pdmesh_link_bytes_per_second{backend="inproc",decode="d0",prefill="p1"}'
            in gateway.metrics.render().decode()
        )

        before = gateway.mesh.links()[1]
        await mesh.stop_worker(InstanceId("p1"))
        await mesh.until(lambda: len(gateway.mesh.links()) == 1)
        assert 'prefill="p1"' not in gateway.metrics.render().decode()
        await mesh.start_worker(InstanceId("p1"))
        await mesh.until(lambda: len(gateway.mesh.links()) == 2)
        assert gateway.mesh.links()[1].peer_generation != before.peer_generation
        async with mesh.client.get("/links") as response:
            assert len((await response.json())["links"]) == 2


class Walled(InprocBackend):
    """Its links cannot be made."""

    async def connect(self, endpoint: str) -> Link:
        raise PeerLost(f"{endpoint} is walled up")


async def test_a_pair_without_a_link_is_not_shown(deterministic_folder: Path) -> None:
    """And serves what needs none."""
    async with in_process_mesh(mesh_config(), deterministic_folder, backend=Walled()) as mesh:
        answer = await mesh.complete("a prompt", pdmesh={"split": "full"})
        assert (answer.status, answer.body["error"]["code"]) == (503, "handoff_failed")
        assert "walled up" in answer.body["error"]["message"]
        assert (await mesh.complete("a prompt", pdmesh={"split": 0})).status == 200
        assert mesh.gateway.mesh.links() == ()
