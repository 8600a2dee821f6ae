"""`pdmesh bench policies --real --mesh`: whole meshes of processes, from their files to the report."""

import json
import os
from pathlib import Path

import pytest
import yaml

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.errors import ConfigError
from services.bench.load.stream import LoadError
from services.cli.bench.mesh import MeshFlags, run_bench_mesh
from services.cli.outcome import ExitCode
from services.scheduling.profiles.profile import Origin, Profile, ProfileError, Subject, encode_profile

COSTS = InstanceCosts(
    PrefillCost(0.001, 1e-5), MixedStepCost(0.001, 1e-5, 1e-8, 1e-8), DecodeStepCost(0.001, 1e-5, 1e-8)
)
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("PDMESH_")}


def write_mesh(file: Path, model: Path, policy: str, instances: list[dict[str, object]]) -> Path:
    keys = {"model": str(model), "policy": policy, "log_level": "warning", "instances": instances}
    file.write_text(yaml.safe_dump(keys))
    return file


def write_profile(file: Path) -> Path:
    profile = Profile(
        subject=Subject("deterministic", "float32"),
        origin=Origin.MEASURED,
        device="cpu",
        costs=COSTS,
        fits={},
        kv_capacity_tokens=4096,
    )
    file.write_bytes(encode_profile(profile))
    return file


def test_meshes_are_measured_beside_what_their_profiles_predict(deterministic_folder: Path, tmp_path: Path) -> None:
    profile = str(write_profile(tmp_path / "profile.json"))
    first = write_mesh(
        tmp_path / "planned.yaml",
        deterministic_folder,
        "disagg",
        [
            {"id": "p0", "role": "prefill", "profile": profile},
            {"id": "d0", "role": "decode", "profile": profile, "emulate": {"slowdown": 2.0}},
        ],
    )
    second = write_mesh(tmp_path / "other.yaml", deterministic_folder, "dp", [{"id": "d0", "role": "decode"}])
    out = tmp_path / "report.json"
    flags = MeshFlags(mesh=(first, second), json=out, trace="synthetic", requests=12, divide=40, rounds=2)
    assert run_bench_mesh(flags, ENVIRON) is ExitCode.DONE
    report = json.loads(out.read_text())
    planned, other = report["rows"]
    assert (planned["mesh"], planned["policy"], planned["where"]) == ("planned", "disagg", "emulated")
    assert (other["mesh"], other["policy"], other["where"]) == ("other", "dp", "real")
    assert planned["repeats"] == other["repeats"] == 2
    assert planned["requests"] == 12
    assert planned["predicted_throughput_rps"] > 0
    assert planned["unpredicted"] is None
    assert other["predicted_throughput_rps"] is None
    assert other["unpredicted"] == "d0: no profile"
    # The deterministic model answers alike however it is divided.
    assert planned["same_answers"] == other["same_answers"] == 1.0
    assert 0 < report["summary"]["first_over_best_other"] < 100
    assert report["summary"]["prediction_error_throughput_rps"] >= 0
    assert report["command"] == (
        "pdmesh bench policies --real --mesh planned.yaml --mesh other.yaml --requests 12 --divide 40 --rounds 2"
    )


def test_a_mesh_that_refuses_a_request_ends_the_run_with_its_words(deterministic_folder: Path, tmp_path: Path) -> None:
    small = [{"id": "d0", "role": "decode", "kv_memory": "64KiB"}]
    mesh = write_mesh(tmp_path / "small.yaml", deterministic_folder, "dp", small)
    (tmp_path / "trace.jsonl").write_text(json.dumps({"timestamp": 0, "input_length": 900, "output_length": 30}))
    flags = MeshFlags(mesh=(mesh,), json=tmp_path / "out.json", trace=str(tmp_path / "trace.jsonl"))
    with pytest.raises((LoadError, ConfigError), match="900"):
        run_bench_mesh(flags, ENVIRON)


def test_a_profile_that_is_not_there_ends_it_before_anything_starts(deterministic_folder: Path, tmp_path: Path) -> None:
    instances = [{"id": "d0", "role": "decode", "profile": str(tmp_path / "none.json")}]
    mesh = write_mesh(tmp_path / "mesh.yaml", deterministic_folder, "dp", instances)
    with pytest.raises(ProfileError, match=r"none\.json"):
        run_bench_mesh(MeshFlags(mesh=(mesh,), json=tmp_path / "out.json", requests=2), ENVIRON)
