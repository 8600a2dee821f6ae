"""A mesh with API keys: what operators' commands, the launcher and a revoked client see of it."""

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from services.cli.chat import ChatSettings, Conversation, served_model
from services.cli.client_keys import add_client_key, revoke_client_key
from services.cli.draining import drain, resume
from services.cli.gateway_client import Gateway, GatewayRefused
from services.cli.links import fetch_links
from services.cli.status import fetch_standing
from services.cli.trace import show_traces
from services.launch.readiness import missing_reason, not_ready_reason
from services.planner.measuring.client import MeshClient
from tests.mesh.inprocess import in_process_mesh, mesh_config


async def test_operators_ask_with_a_key_until_it_is_taken_back(deterministic_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = add_client_key(file, "ann")
    async with in_process_mesh(mesh_config(api_keys=str(file)), deterministic_folder) as mesh:
        url, port = mesh.gateway.url, int(mesh.gateway.url.rpartition(":")[2])
        at, quiet = Gateway(url, key), Console(file=io.StringIO())
        # The launcher has no key, and waits for a mesh all the same.
        assert await not_ready_reason("127.0.0.1", port) is None
        assert await missing_reason("127.0.0.1", port, ["p0", "d0"]) is None

        def operate() -> str:
            assert {info.member.instance for info in fetch_standing(at).instances} == {"p0", "d0"}
            assert {info.member.instance for info in MeshClient(url, key).instances()} == {"p0", "d0"}
            fetch_links(at)
            show_traces(at, 5, as_json=False, console=quiet)
            drain(at, "d0", None, quiet)
            resume(at, "d0", quiet)
            return "".join(Conversation(ChatSettings(url, served_model(at), max_tokens=4, key=key)).say("hello"))

        answer = await asyncio.to_thread(operate)
        assert answer
        (trace,) = mesh.gateway.traces.newest(5)
        assert trace.key == "ann"
        for stranger in (url, Gateway(url, "pdmesh-wrong")):
            with pytest.raises(GatewayRefused, match="PDMESH_API_KEY"):
                await asyncio.to_thread(fetch_standing, stranger)
        revoke_client_key(file, "ann")
        async with asyncio.timeout(10):
            while not await asyncio.to_thread(is_refused, at):  # noqa: ASYNC110 - the gateway looks at its file
                await asyncio.sleep(0.05)


def is_refused(at: Gateway) -> bool:
    try:
        fetch_standing(at)
    except GatewayRefused as refused:
        return "not valid" in str(refused)
    return False
