"""Instances of a whole mesh are measured through the gateway, and serve with what was found."""

import asyncio
import io
from functools import partial
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from common.config.types import MeshConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.operator import InstanceInfo, InstanceList
from services.cli.outcome import ExitCode
from services.cli.profile import ProfileFlags, run_profile
from services.scheduling.profiles.profile import Profile, Subject, decode_profile, encode_profile
from tests.mesh.inprocess import InProcessMesh, deterministic, in_process_mesh, mesh_config


def flags(mesh: InProcessMesh, out: Path, *instances: str) -> ProfileFlags:
    return ProfileFlags(mesh.gateway.url, instances or ("all",), out, plot=None, repeats=2, is_quick=True)


async def profiled(mesh: InProcessMesh, out: Path, *instances: str) -> str:
    """Run the command beside the mesh, as its own process would; what it shows."""
    shown = io.StringIO()
    console = Console(file=shown, width=160)
    assert await asyncio.to_thread(run_profile, flags(mesh, out, *instances), console) is ExitCode.DONE
    return shown.getvalue()


async def instances(mesh: InProcessMesh) -> dict[str, InstanceInfo]:
    async with mesh.client.get("/instances") as response:
        assert response.status == 200
        shown = msgspec.json.decode(await response.read(), type=InstanceList).instances
    return {info.member.instance: info for info in shown}


def read(file: Path) -> Profile:
    return decode_profile(file.read_bytes(), str(file))


def with_keys(config: MeshConfig, **keys: object) -> MeshConfig:
    """`config` with these keys in each of its instances."""
    changed = tuple(msgspec.structs.replace(instance, **keys) for instance in config.instances)
    return msgspec.structs.replace(config, instances=changed)


async def test_each_instance_is_profiled_while_the_mesh_runs(deterministic_folder: Path, tmp_path: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        before = await mesh.complete("a prompt of some tokens")
        shown = await profiled(mesh, tmp_path / "profiles")
        for name in ("p0", "d0"):
            profile = read(tmp_path / "profiles" / f"{name}.json")
            assert profile.subject == Subject("deterministic", "float32")
            assert profile.costs.prefill.seconds(100) > 0
            assert len(profile.points) == sum(fit.points for fit in profile.fits.values())
            assert profile.kv_capacity_tokens == 1024
            assert f"{name}: {profile.device}, float32" in shown
            assert str(tmp_path / "profiles" / f"{name}.json") in shown
        assert "µs/sequence" in shown
        # What is measured leaves nothing behind, and an answer is what it was.
        await mesh.until_nothing_is_held()
        assert (await mesh.complete("a prompt of some tokens")).text == before.text


async def test_one_instance_into_one_file(deterministic_folder: Path, tmp_path: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        await profiled(mesh, tmp_path / "mine.json", "d0")
        assert read(tmp_path / "mine.json").points
        with pytest.raises(ConfigError, match="one file for 2 instances"):
            await profiled(mesh, tmp_path / "mine.json")
        with pytest.raises(ConfigError, match=r"'d7' is not in the mesh, which has .*d0"):
            await profiled(mesh, tmp_path, "d7")


async def test_a_profile_is_registered_and_corrected_by_what_steps_take(
    deterministic_folder: Path, tmp_path: Path
) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        await profiled(mesh, tmp_path)
    # A device a thousand times as fast: the steps of a real one are slower than that without any doubt.
    written = read(tmp_path / "d0.json")
    fast = msgspec.structs.replace(written, costs=written.costs.scaled(1e-3), threads=None)
    (tmp_path / "d0.json").write_bytes(encode_profile(fast))
    config = with_keys(mesh_config(), profile=str(tmp_path / "d0.json"))
    async with in_process_mesh(config, deterministic_folder) as mesh:
        shown = await instances(mesh)
        assert shown["d0"].member.costs == shown["p0"].member.costs == fast.costs
        assert (shown["p0"].member.budget, shown["d0"].member.budget) == (None, 64)
        assert (await mesh.complete("a prompt", max_tokens=60, min_tokens=60)).status == 200
        await mesh.until(lambda: mesh.loads()[InstanceId("d0")].cost_factor > 8)


async def test_a_profile_of_another_model_keeps_an_instance_out(deterministic_folder: Path, tmp_path: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        await profiled(mesh, tmp_path, "d0")
        wrong = msgspec.structs.replace(read(tmp_path / "d0.json"), subject=Subject("another", "float32"))
        (tmp_path / "d0.json").write_bytes(encode_profile(wrong))
        await mesh.stop_worker(InstanceId("d0"))
        good = mesh.config
        mesh.config = with_keys(good, profile=str(tmp_path / "d0.json"))
        with pytest.raises(ConfigError, match="model 'another', and the instance has model 'deterministic'"):
            await mesh.start_worker(InstanceId("d0"))
        mesh.config = good
        await mesh.start_worker(InstanceId("d0"))
        await mesh.until(lambda: mesh.gateway.mesh.not_ready() is None)


async def test_an_instance_that_measures_itself_joins_with_its_costs(deterministic_folder: Path) -> None:
    config = with_keys(mesh_config(), self_profile=True)
    async with in_process_mesh(config, deterministic_folder) as mesh:
        for info in (await instances(mesh)).values():
            assert info.member.costs is not None
            assert info.member.costs.decode.seconds(4, 100) > 0
            assert info.member.device.dtype == "float32"


async def test_an_instance_that_serves_refuses_to_measure(deterministic_folder: Path) -> None:
    slow = partial(deterministic, step_seconds=0.005)
    async with in_process_mesh(mesh_config(), deterministic_folder, build=slow) as mesh:
        answer = asyncio.ensure_future(mesh.complete("a prompt", max_tokens=200, min_tokens=200))
        await mesh.until(lambda: mesh.loads()[InstanceId("d0")].running > 0)
        async with mesh.client.post("/instances/d0/measure", json={"shape": {"decodes": 2}}) as response:
            assert response.status == 409
            assert "measure when it idles" in (await response.json())["error"]["message"]
        assert (await answer).status == 200
