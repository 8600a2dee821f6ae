"""The whole way: two unlike devices are profiled, planned for, started as planned, and serve what was foreseen."""

import asyncio
import json
import os
from pathlib import Path

import msgspec
import pytest
import yaml
from rich.console import Console

from common.clock import SystemClock
from common.config.load import load_mesh
from common.config.types import EmulateConfig, GatewayConfig, InstanceConfig, MeshConfig
from common.ids import InstanceId
from common.kv.layout import KVOrder
from common.messages.control import Role
from services.cli.bench.mesh import MeshFlags, run_bench_mesh
from services.cli.outcome import ExitCode
from services.cli.plan import PlanFlags, run_plan
from services.cli.profile import ProfileFlags, run_profile
from services.launch.local import LaunchOptions, LocalMesh

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("PDMESH_")}
QUIET = Console(quiet=True)
VENDORS = (
    InstanceConfig(id=InstanceId("fast"), role=Role.PREFILL, threads=1, kv_memory="128MiB"),
    InstanceConfig(
        id=InstanceId("slow"),
        role=Role.DECODE,
        threads=1,
        kv_memory="128MiB",
        dtype="bfloat16",
        block_size=32,
        order=KVOrder.HND,
        emulate=EmulateConfig(slowdown=3.0),
    ),
)
"""Two vendors: unlike in pace, block size, order and element type."""


def write_plan_file(folder: Path, model: Path) -> Path:
    machines = []
    for vendor in VENDORS:
        keys = msgspec.to_builtins(vendor)
        told = {key: keys[key] for key in ("dtype", "order", "threads") if keys[key] is not None}
        machines.append(
            {
                "name": vendor.id,
                "profiles": [f"profiles/{vendor.id}.json"],
                "block_size": vendor.block_size,
                "kv_memory": vendor.kv_memory,
                "max_batch": 4,
                "budget": 64,
                "instance": told,
            }
        )
    file = folder / "machines.yaml"
    keys = {
        "model": str(model),
        "mesh_model": str(model),
        "dtype": "float32",
        "workload": {"prompt": {"mean": 24}, "output": {"mean": 6}, "requests": 12},
        "machines": machines,
    }
    file.write_text(yaml.safe_dump(keys))
    return file


async def profile_vendors(folder: Path, model: Path) -> None:
    """On the mesh where they first stand."""
    gateway = GatewayConfig(http="127.0.0.1:0", control="tcp://127.0.0.1:0")
    config = MeshConfig(model=str(model), gateway=gateway, log_level="warning", instances=VENDORS)
    options = LaunchOptions(model_folder=model)
    async with LocalMesh(config, environ=ENVIRON, clock=SystemClock(), options=options) as mesh:
        flags = ProfileFlags(mesh.url, ("all",), folder / "profiles", None, 1, True, 64)
        assert await asyncio.to_thread(run_profile, flags, QUIET) is ExitCode.DONE


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_machines_to_a_mesh_that_serves_as_planned(smollm2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    asyncio.run(profile_vendors(tmp_path, smollm2_folder))
    mesh, others, told = tmp_path / "mesh.yaml", tmp_path / "plans", tmp_path / "plan.json"
    plan_file = write_plan_file(tmp_path, smollm2_folder)
    flags = PlanFlags(cluster=plan_file, out=mesh, all=others, json=told)
    assert run_plan(flags, ENVIRON, QUIET, QUIET) is ExitCode.DONE

    config = load_mesh(mesh, {}, {})
    by_pool = {instance.id.rpartition("-")[0]: instance for instance in config.instances}
    plans = [row for row in json.loads(told.read_text())["rows"] if row["kind"] == "plan"]
    assert len(plans) == len(list(others.iterdir())) > 1, "every plan of the table can be run here"
    assert {row["costs"] for row in plans} == {"measured"}
    for vendor in VENDORS:
        if (planned := by_pool.get(vendor.id)) is not None:
            assert (planned.order, planned.block_size, planned.dtype) == (vendor.order, vendor.block_size, vendor.dtype)
            assert planned.emulate == vendor.emulate, "what was profiled is what is started"

    report = tmp_path / "report.json"
    rivals = sorted(others.iterdir())[1:2]
    bench = MeshFlags(mesh=(mesh, *rivals), json=report, trace="synthetic", requests=6, divide=40, rounds=1)
    assert run_bench_mesh(bench, ENVIRON) is ExitCode.DONE
    rows = json.loads(report.read_text())["rows"]
    assert [row["where"] for row in rows[:1]] in (["emulated"], ["real"])
    for row in rows:
        assert row["throughput_rps"] > 0
        assert row["predicted_throughput_rps"] > 0, "its profiles go with it"
